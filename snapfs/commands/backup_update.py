"""`snapfs backup ... DEST --update`: a raw backup, in a file or on a block device, brought up to date where it is.

DEST locked, and what is there (`backup_old`)  ->  [cut]  ->  source  ->  what has changed, and then in this order:

    (1) DEST.update is on the disk: what may be written     (2) DEST is written, and on the disk
    (3) the cut is held     (4) DEST.json is replaced     (5) DEST.update goes     (6) the cuts before are let go

A crash before (1) leaves the backup as it was. One between (1) and (4) leaves one that is half brought up to date,
and is known as such: the next --update, of whatever cut, writes again what that one may have written. One after (4)
leaves the new backup.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from snapfs.backups.changes import Changed, Void, by_same_map, fingerprint
from snapfs.commands.backup_old import Old
from snapfs.commands.checkpoints import ChainCheckpoints
from snapfs.commands.whole_image import Words, saying_that_it_is_half_done
from snapfs.destination.access import Access
from snapfs.destination.consent import Consent
from snapfs.destination.in_place import note_who_can_read
from snapfs.destination.result import finish
from snapfs.destination.unfinished import claim
from snapfs.destination.write_errors import write_errors
from snapfs.imager.backup import Backup, finished_manifest
from snapfs.imager.extents import cell_count, cells_of, ranges_of, used_cells
from snapfs.imager.half_way import WAY_OUT, Note, manifest_hash, remove_note, write_note
from snapfs.imager.holder import noted, used_of
from snapfs.imager.manifest import Manifest, write_manifest
from snapfs.imager.pace import Pace
from snapfs.imager.progress import Report
from snapfs.imager.reader import open_backup
from snapfs.imager.results import Results, naming
from snapfs.imager.source import Source
from snapfs.imager.target import FileTarget
from snapfs.imager.unread import Ranges
from snapfs.imager.update import Update, UpdateTarget, compared, known, unknown
from snapfs.options import BackupOptions
from snapfs.stamps import utc_now

_WORDS: Final = Words(WAY_OUT.removesuffix(" again"), "brought up to date", "the image")


@dataclass(frozen=True)
class Updated:
    """A backup that was brought up to date. `why`: why everything was read, else empty."""

    manifest: Manifest
    why: str
    read_bytes: int
    written_bytes: int


def bring_up_to_date(
    old: Old, options: BackupOptions, source: Source, cut_facts: dict[str, Any], report: Report, consent: Consent
) -> Updated:
    """SnapfsError: the backup is as it was, or the sentence says that it is half brought up to date."""
    dest, manifest_place = old.places.dest, old.places.manifest
    assert dest is not None
    assert manifest_place is not None
    checkpoints = ChainCheckpoints(old.holder, options.source, source, consent.note)
    update, why = _planned(old, options, source, checkpoints, report)
    read_bytes = update.compared_bytes + update.plan.bytes_to_read()
    access = (source.access if dest.is_device else Access.of(old.fd)).with_mode(options.mode)
    if options.mode is None:
        note_who_can_read(dest, source.access, consent)
    owners: set[int | None] = {os.geteuid(), os.fstat(old.fd).st_uid}
    note = old.places.update
    assert note is not None
    write_note(note, _note_of(old, source, update, manifest_place.real), access, owners)
    with saying_that_it_is_half_done(dest.named, _WORDS):
        file = FileTarget(old.fd, dest.real, source.size_bytes, is_new=False, way_out=WAY_OUT, name=str(dest.named))
        try:
            target = UpdateTarget(file, update)
            pace, skips = Pace(options.rate_bytes_per_s), options.on_read_error == "skip"
            # Nothing is released before all is there: to be finished, it may be read again.
            Backup(source, target, update.plan, None, releases=False, skips=skips, pace=pace).run(report)
        finally:
            file.close()
        manifest = finished_manifest(source, update.plan, "raw", cut_facts)
        manifest = noted(manifest, old.holder, fingerprint(source.used))
        if options.verify:
            with open_backup(dest.real, manifest) as reader:
                reader.verify(report)
        Results(old.places).write_rescue_map(manifest, source.path, consent, access)
        _name(old, manifest, access, checkpoints, options.mode)
    remove_note(note, owners)
    checkpoints.let_go()
    return Updated(manifest, why, read_bytes, target.written_bytes)


def _planned(
    old: Old, options: BackupOptions, source: Source, checkpoints: ChainCheckpoints, report: Report
) -> tuple[Update, str]:
    """What is to be read and written, and why that is more than what was written since."""
    if old.why:
        return unknown(source), old.why
    count = cell_count(source.size_bytes)
    half = cells_of(old.half.ranges or () if old.half else (), count)
    changed = _changes(old.manifest, source, checkpoints)
    if isinstance(changed, Changed):
        suspected = used_cells(changed.suspected(source.used), source.block_bytes, source.size_bytes)
        return known(source, old.manifest, suspected, half), ""
    skips = options.on_read_error == "skip"
    return compared(source, old.manifest, half, report, options.rate_bytes_per_s, skips=skips), changed.reason


def _changes(manifest: Manifest, source: Source, checkpoints: ChainCheckpoints) -> Changed | Void:
    cut = manifest.facts.get("cut")
    cut_id = str(cut["id"]) if isinstance(cut, dict) and "id" in cut else None
    return by_same_map(checkpoints.changes_since(cut_id), used_of(manifest), source.used)


def _note_of(old: Old, source: Source, update: Update, manifest: Path) -> Note:
    cut = source.facts["cut"]
    begun_at = old.half.begun_at if old.half is not None else ""
    return Note(
        manifest_blake3=manifest_hash(manifest),
        begun_at=begun_at or utc_now(),
        image=str(source.facts["image"]),
        cut_id=None if cut is None else str(cut["id"]),
        image_bytes=source.size_bytes,
        ranges=Ranges(ranges_of(update.cells, source.size_bytes)),
    )


def _name(old: Old, manifest: Manifest, access: Access, checkpoints: ChainCheckpoints, mode: int | None) -> None:
    """The backup is written: put its manifest in the place of the one before."""
    dest, place = old.places.dest, old.places.manifest
    assert dest is not None
    assert place is not None
    with write_errors(str(dest.named), WAY_OUT):
        if mode is not None:
            os.fchmod(old.fd, mode)
        # Its times too: the manifest has them.
        os.fsync(old.fd)
        manifest = naming(manifest, old.fd)
    checkpoints.hold()
    unfinished = claim(place, Consent(force=True, quiet=True), owner=os.fstat(old.fd).st_uid)
    try:
        with write_errors(str(place.named), WAY_OUT):
            write_manifest(unfinished.file, manifest)
        finish(unfinished, access)
    except BaseException:
        unfinished.discard()
        raise
    finally:
        unfinished.close()
