"""`snapfs backup LIVE rbd:POOL/IMAGE`: the next backup in a Ceph pool, as a snapshot of an image there.

image as its last snapshot is  ->  [cut]  ->  source  ->  diff  ->  rbd import-diff  ->  snapshot  ->  note of it

The note, in the metadata of the image, says of which cut its last snapshot is, and by which map of used blocks it was
made. Without it, or with a newer snapshot, all is sent again: killed anywhere, what is there is right.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, replace
from typing import Any, Final

from snapfs.backups.changes import Changed, Void, by_same_map, fingerprint
from snapfs.commands.backup_begin import check_cut, cut_first, open_asked, refuse_others
from snapfs.commands.checkpoints import ChainCheckpoints
from snapfs.destination.consent import Consent
from snapfs.errors import UsageError
from snapfs.imager.backup import Backup, Plan
from snapfs.imager.extents import Extent, extents_of, used_cells
from snapfs.imager.manifest import describe_ranges
from snapfs.imager.pace import Pace, yield_to_others
from snapfs.imager.progress import Report
from snapfs.imager.source import Source
from snapfs.imager.unread import Ranges
from snapfs.options import BackupOptions
from snapfs.rbd.stream import DiffTarget
from snapfs.rbd.tool import RbdImage, parse_spec
from snapfs.stamps import utc_now

# In the metadata of an image: the id of its chain of backups, and the note of the last one as JSON.
_CHAIN: Final = "snapfs.chain"
_LAST: Final = "snapfs.last"


@dataclass(frozen=True)
class Pooled:
    """A finished backup in a pool. `base`: the snapshot that it was sent as a difference to. `why`: why it is a full
    one, or why everything was sent."""

    image: str
    snapshot: str
    cut: dict[str, Any] | None
    base: str | None
    why: str
    image_bytes: int
    sent_bytes: int
    unread: Ranges


@dataclass(frozen=True)
class _Last:
    """The snapshot that the image is, and what is known of it."""

    snapshot: str
    cut_id: str | None
    used_blake3: str | None


def backup_into_pool(options: BackupOptions, report: Report, consent: Consent) -> Pooled:
    """Make one more backup. SnapfsError: the image has the snapshots that it had."""
    image, named = parse_spec(options.address)
    if named is not None:
        raise UsageError(f"A backup has a name by its time; leave out @{named}.")
    refuse_others(options, image, ("rate_bytes_per_s", "on_read_error", "skip_swap"))
    check_cut(options)
    chain_id, last = _prepared(image, consent)
    options, cut_facts = cut_first(options, consent)
    yield_to_others()
    with open_asked(options) as source:
        if last is None:
            image.create(source.size_bytes)
            image.note(_CHAIN, chain_id)
        checkpoints = ChainCheckpoints(chain_id, options.source, source, consent.note)
        made = _sent(options, image, source, last, _changes_since(last, source, checkpoints), report)
        if not made.unread:
            # What could not be read is read again: then nobody is to think that he knows what it was.
            checkpoints.hold()
        note = {"snapshot": made.snapshot, "cut": _cut_id(source), "used": fingerprint(source.used)}
        image.note(_LAST, json.dumps(note))
        checkpoints.let_go()
        if options.release:
            for offset, length in made.unread.outside(0, source.size_bytes):
                source.release(offset, length)
        if made.unread:
            consent.note(
                f"{describe_ranges(made.unread)} of {source.path} could not be read, and {image}@{made.snapshot} has "
                "zeros there; the next backup reads everything."
            )
    return replace(made, cut=None if made.cut is None else {**made.cut, **cut_facts})


def _prepared(image: RbdImage, consent: Consent) -> tuple[str, _Last | None]:
    """The id of the chain, and what the image is now: as its last snapshot, or not there."""
    if image.size_bytes() is None:
        return uuid.uuid4().hex, None
    chain_id = image.noted(_CHAIN)
    if chain_id is None:
        raise UsageError(f"{image} exists, and holds no backups of snapfs; name another image.")
    snapshots = image.snapshots()
    if not snapshots:
        consent.note(f"The first backup into {image} was interrupted, and is begun again.")
        image.remove()
        return chain_id, None
    last = snapshots[-1]
    if image.is_changed_since(last):
        consent.note(f"What an interrupted backup has left in {image} is undone.")
        image.roll_back(last)
    return chain_id, _noted(image, last)


def _noted(image: RbdImage, last: str) -> _Last:
    try:
        found = json.loads(image.noted(_LAST) or "{}")
        if found["snapshot"] == last:
            return _Last(last, found["cut"], found["used"])
    except (ValueError, KeyError, TypeError):
        pass
    return _Last(last, None, None)


def _changes_since(last: _Last | None, source: Source, checkpoints: ChainCheckpoints) -> Changed | Void:
    if last is None:
        return Void("it is the first")
    if last.used_blake3 is None:
        return Void("the backup before was interrupted at its end")
    return by_same_map(checkpoints.changes_since(last.cut_id), last.used_blake3, source.used)


def _sent(
    options: BackupOptions,
    image: RbdImage,
    source: Source,
    last: _Last | None,
    changed: Changed | Void,
    report: Report,
) -> Pooled:
    name = _name(source)
    since = None if last is None else last.snapshot
    plan = Plan(_extents(source, changed), {})
    with image.importing() as fd:
        target = DiffTarget(fd, str(image), source.size_bytes, since, name)
        for extent in plan.extents:
            if extent.is_zeros:
                target.hide(extent.offset, extent.length)
        pace, skips = Pace(options.rate_bytes_per_s), options.on_read_error == "skip"
        Backup(source, target, plan, None, releases=False, skips=skips, pace=pace).run(report)
    return Pooled(
        image=str(image),
        snapshot=name,
        cut=source.facts["cut"],
        base=since,
        why=changed.reason if isinstance(changed, Void) else "",
        image_bytes=source.size_bytes,
        sent_bytes=sum(extent.length for extent in plan.extents if not extent.is_zeros),
        unread=plan.unread(),
    )


def _extents(source: Source, changed: Changed | Void) -> list[Extent]:
    """What is read and sent, and (`is_zeros`) what is said to be zeros."""
    wanted = used_cells(source.used, source.block_bytes, source.size_bytes)
    if (holes := source.holes()) is not None:
        wanted &= ~holes
    hidden = ~wanted
    if isinstance(changed, Changed):
        suspected = used_cells(changed.suspected(source.used), source.block_bytes, source.size_bytes)
        wanted &= suspected
        hidden &= suspected
    found = [*extents_of(wanted, source.size_bytes)]
    found += extents_of(hidden, source.size_bytes, is_zeros=True)
    return sorted(found, key=lambda extent: extent.offset)


def _cut_id(source: Source) -> str | None:
    cut = source.facts["cut"]
    return None if cut is None else str(cut["id"])


def _name(source: Source) -> str:
    """By the time of the cut, and unlike that of any other."""
    cut = source.facts["cut"]
    taken_at = cut["taken_at"] if cut else utc_now()
    return f"{taken_at.replace(':', '')}-{(_cut_id(source) or uuid.uuid4().hex)[:8]}"
