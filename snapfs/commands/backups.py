"""A directory of backups as the commands take it: `snapfs backups`, `verify` and `restore` of a chain."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from snapfs.backups.against import differing_cells
from snapfs.backups.chain import Chain, Entry
from snapfs.backups.facts import read_facts
from snapfs.backups.layout import QCOW2, Names
from snapfs.backups.overlay import Overlay
from snapfs.backups.proving import Proof, describe_cells, prove
from snapfs.backups.reading import open_tables
from snapfs.backups.turn import Turn, turn
from snapfs.destination.consent import Note
from snapfs.errors import BackupDamagedError, SnapfsError, UsageError
from snapfs.imager.pace import yield_to_others
from snapfs.imager.progress import Report
from snapfs.imager.source import open_source
from snapfs.system.mounts import canonical_path


@dataclass(frozen=True)
class Listed:
    """A backup of a chain, and how many files it needs."""

    entry: Entry
    files: int


@dataclass(frozen=True)
class Verified:
    """What `verify` of a chain has found: all of it is good."""

    entry: Entry
    proof: Proof


def chain_named(path: Path) -> tuple[Path, str | None] | None:
    """The directory of a chain that a user means, and which backup of it, where he names its file; None: neither."""
    real = canonical_path(path)
    if real.is_dir():
        return real, None
    if real.suffix != QCOW2:
        return None
    names = Names(real.parent, real.name.removesuffix(QCOW2))
    try:
        read_facts(names.facts, names.name)
    except SnapfsError:
        return None
    return names.directory, names.name


@contextlib.contextmanager
def chain_to_read(directory: Path, note: Note) -> Iterator[tuple[Chain, Turn]]:
    """The chain in a directory, which nobody changes meanwhile; UsageError when there is none."""
    with turn(directory, changes=False) as held:
        chain = Chain.load(directory)
        for sentence in chain.notes:
            note(sentence)
        if not chain.entries:
            raise UsageError(f"There is no backup in {directory}; name a directory of backups.")
        yield chain, held


def listed(path: Path, note: Note) -> list[Listed]:
    """The backups in a directory, oldest first."""
    if not path.is_dir():
        raise UsageError(f"{path} is no directory; name a directory of backups.")
    with chain_to_read(canonical_path(path), note) as (chain, _):
        return [Listed(entry, len(chain.increments(entry.name)) + 1) for entry in chain.entries]


def verify_chain(
    directory: Path, at: str | None, report: Report, note: Note, *, everything: bool, against: Path | None
) -> Verified:
    """Read the backup of that time, or all; BackupDamagedError says what is damaged, and which times are lost."""
    with chain_to_read(directory, note) as (chain, held):
        entry = chain.find(at)
        yield_to_others()
        proof = prove(chain, [one.name for one in chain.entries] if everything else [entry.name], report)
        if against is not None and entry.name in proof.good:
            _compare(chain, entry, against, report)
        if proof.good:
            _note_verified(held, proof, note)
        if proof.damages:
            raise _damaged(chain, proof, everything=everything)
        return Verified(entry, proof)


def _note_verified(held: Turn, proof: Proof, note: Note) -> None:
    if not held.may_change():
        note(f"Somebody else uses {held.directory}, so it is not noted that it was verified.")
        return
    try:
        # Between reading and changing somebody may have made one more.
        chain = Chain.load(held.directory)
        chain.note_verified(proof.good)
        chain.save()
    except SnapfsError as error:
        # Also what cannot be written to can be verified.
        note(f"It is not noted that it was verified: {error.sentence}")


def _compare(chain: Chain, entry: Entry, live: Path, report: Report) -> None:
    links = chain.links(entry.name)
    with (
        open_source(live, entry.cut_id) as source,
        open_tables(chain, links, whole=True) as tables,
    ):
        differing = differing_cells(source, links[-1], Overlay(links[-1].image_bytes, tables), report)
    if differing.any():
        raise BackupDamagedError(
            f"{entry.name} is not what {live} shows of that cut: {describe_cells(differing)} is something else; back "
            "up again with --full, and report it.",
            path=chain.directory,
        )


def _damaged(chain: Chain, proof: Proof, *, everything: bool) -> BackupDamagedError:
    taken = {entry.name: entry.taken_at for entry in chain.entries}
    what = ", and ".join(proof.damages)
    lost = f"lost: {', '.join(taken[name] for name in proof.lost) or 'none'}"
    good = f", good: {', '.join(taken[name] for name in proof.good)}" if proof.good else ""
    more = "" if everything else " (--all looks at all of them)"
    return BackupDamagedError(
        f"{what} ({lost}{good}); take another copy, or back up again{more}.", path=chain.directory
    )
