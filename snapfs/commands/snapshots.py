"""`snapfs list` and `snapfs delete`: the snapshots of an instance, by their names.

What is thinned out by rules are snapshots with a name, and with one that matches: neither is any other deleted, nor
does it count. The newest of them stays by every rule, and what is taken after the look at all of them is never
touched, because each is deleted by its id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from cow import Store, count_preserved, served_before
from snapfs.chosen import id_of
from snapfs.client import request
from snapfs.commands.status import read_status
from snapfs.errors import SnapfsError
from snapfs.noted import open_cuts
from snapfs.protocol import DeleteSnapshot, LetGoCheckpoints, deadline_in
from snapfs.retention import Keep, kept
from snapfs.stamps import id_text, local_time
from snapfs.system.discovery import find_store

_DELETE_TIMEOUT_S = 60.0
# Why a snapshot stays, besides the rules.
_NOT_NAMED, _NO_NAME, _NO_MATCH = "not asked for", "no name", "no match"


@dataclass(frozen=True, slots=True)
class Fate:
    """What becomes of a snapshot: `reasons` say why it stays; one that has none is deleted."""

    id: str
    name: str
    taken_at: str
    reasons: tuple[str, ...]

    @property
    def stays(self) -> bool:
        return bool(self.reasons)


def listed(path: Path) -> list[dict[str, Any]]:
    """The snapshots of the instance behind `path`, oldest first, each with what it alone holds."""
    store = find_store(path)
    snapshots: list[dict[str, Any]] = read_status(store)["snapshots"]
    reader = open_cuts(store)
    try:
        alone = dict(_alone_shares(reader))
    finally:
        reader.close()
    # One that is over since the look alone is nobody's any more.
    return [one | {"alone_bytes": int(one["stored_bytes"] * alone.get(one["id"], 1))} for one in snapshots]


def _alone_shares(reader: Store) -> Iterator[tuple[str, float]]:
    """Of what each cut preserved, the share that would go with it: older ones do not have the rest."""
    for place, (facts, cut) in enumerate(zip(reader.header.cuts, reader.cuts, strict=True)):
        preserved = count_preserved(cut, served_before(reader.header, reader.cuts[:place]))
        yield id_text(facts.snapshot_id), preserved.alone_blocks / max(1, preserved.blocks)


def delete(path: Path, names: Sequence[str], *, dry_run: bool = False) -> list[Fate]:
    """Those with these names or ids are over, unless it is a `dry_run`, also checkpoints, which have ids only; what
    becomes of each, oldest first.
    SnapfsError: none is, or the sentence says which are."""
    store = find_store(path)
    status = read_status(store)
    snapshots: list[dict[str, Any]] = status["snapshots"]
    checkpoints = {one["id"]: one for one in status["checkpoints"]} if "checkpoints" in status else {}
    for one in snapshots:
        checkpoints.pop(one["id"], None)
    ids = {id_of(snapshots, name, path) for name in names if name not in checkpoints}
    fates = [_fate(one, () if one["id"] in ids else (_NOT_NAMED,)) for one in snapshots]
    for one in [one for id_, one in checkpoints.items() if id_ in names]:
        fates.append(Fate(one["id"], "", one["taken_at"], ()))
        if not dry_run:
            _let_go(store, one, status["checkpoints"])
    if not dry_run:
        list(_deleting(store, [fate for fate in fates if fate.id in ids]))
    return fates


def _let_go(store: Path, checkpoint: dict[str, Any], checkpoints: Sequence[dict[str, Any]]) -> None:
    """Whoever holds it holds all others that he holds."""
    for holder in checkpoint["holders"]:
        keep = tuple(one["id"] for one in checkpoints if holder in one["holders"] and one["id"] != checkpoint["id"])
        request(store, LetGoCheckpoints(holder=holder, keep=keep, deadline_s=deadline_in(_DELETE_TIMEOUT_S)))


def thin_out(path: Path, keep: Keep, pattern: str = "*", *, dry_run: bool = False) -> list[Fate]:
    """The same of all whose names match `pattern`, as a shell has it, but those that `keep` has stay."""
    store = find_store(path)
    fates = fates_by(read_status(store)["snapshots"], keep, pattern)
    if not dry_run:
        list(_deleting(store, fates, may_be_gone=True))
    return fates


def thinning_out_until(store: Path, snapshot_id: str, keep: Keep, pattern: str) -> Iterator[str]:
    """The same of the snapshots up to the one with this id, newer ones being none of the caller's: the name of each
    that is deleted, once it is. SnapfsError: the others are not."""
    snapshots: list[dict[str, Any]] = read_status(store)["snapshots"]
    ids = [one["id"] for one in snapshots]
    count = ids.index(snapshot_id) + 1 if snapshot_id in ids else 0
    for fate in _deleting(store, fates_by(snapshots[:count], keep, pattern), may_be_gone=True):
        yield fate.name


def fates_by(snapshots: Sequence[dict[str, Any]], keep: Keep, pattern: str) -> list[Fate]:
    """What becomes of `snapshots`, objects of a status, oldest first, when they are thinned out."""
    spared = {one["id"]: _why_spared(one["name"], pattern) for one in snapshots}
    series = [(local_time(one["taken_at"]), one["id"]) for one in snapshots if not spared[one["id"]]]
    by_rules = kept(series, keep)
    return [_fate(one, spared[one["id"]] or by_rules.get(one["id"], ())) for one in snapshots]


def _why_spared(name: str, pattern: str) -> tuple[str, ...]:
    if not name:
        return (_NO_NAME,)
    return () if fnmatchcase(name, pattern) else (_NO_MATCH,)


def _fate(one: dict[str, Any], reasons: tuple[str, ...]) -> Fate:
    return Fate(one["id"], one["name"], one["taken_at"], reasons)


def _deleting(store: Path, fates: Sequence[Fate], *, may_be_gone: bool = False) -> Iterator[Fate]:
    """Each that is deleted, once it is. The oldest first: what is the oldest of all need not be merged."""
    going = [fate for fate in fates if not fate.stays]
    for done, fate in enumerate(going):
        try:
            request(store, DeleteSnapshot(id=fate.id, deadline_s=deadline_in(_DELETE_TIMEOUT_S)))
        except SnapfsError as error:
            if not (may_be_gone and _is_gone(store, fate.id)):
                if not done:
                    raise
                raise SnapfsError(f"{done} of {len(going)} snapshots were deleted. {error.sentence}") from error
        yield fate


def _is_gone(store: Path, snapshot_id: str) -> bool:
    """By somebody else, who thins out as well."""
    with suppress(SnapfsError):
        return all(one["id"] != snapshot_id for one in read_status(store)["snapshots"])
    return False
