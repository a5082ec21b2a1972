"""`snapfs backup ... DEST --update`: a raw backup, in a file or on a block device, brought up to date where it is.

DEST locked  ->  its manifest, and what an interrupted one has left  ->  [cut]  ->  source  ->  what has changed

    (1) DEST.update is on the disk: what may be written     (2) DEST is written, and on the disk
    (3) the cut is held     (4) DEST.json is replaced     (5) DEST.update goes     (6) the cuts before are let go

A crash before (1) leaves the backup as it was. One between (1) and (4) leaves one that is half brought up to date,
and is known as such: the next --update, of whatever cut, writes again what that one may have written. One after (4)
leaves the new backup.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from snapfs.backups.changes import Changed, Void, by_same_map, fingerprint
from snapfs.commands.backup_begin import check_device, check_image
from snapfs.commands.checkpoints import ChainCheckpoints
from snapfs.commands.whole_image import Words, saying_that_it_is_half_done
from snapfs.destination.access import Access
from snapfs.destination.consent import Consent
from snapfs.destination.in_place import note_who_can_read, open_in_place
from snapfs.destination.pair import is_same
from snapfs.destination.place import look_at
from snapfs.destination.result import finish
from snapfs.destination.unfinished import claim
from snapfs.destination.write_errors import write_errors
from snapfs.errors import SnapfsError, UsageError
from snapfs.imager.backup import Backup, finished_manifest
from snapfs.imager.extents import cell_count, cells_of, ranges_of, used_cells
from snapfs.imager.half_way import WAY_OUT, HalfWay, Note, half_way, manifest_hash, remove_note, write_note
from snapfs.imager.manifest import Manifest, read_manifest, write_manifest
from snapfs.imager.pace import Pace
from snapfs.imager.progress import Report
from snapfs.imager.reader import open_backup
from snapfs.imager.results import Places, Results, ask_for_rescue_map, look_at_places, naming
from snapfs.imager.source import Source
from snapfs.imager.target import FileTarget
from snapfs.imager.unread import Ranges
from snapfs.imager.update import Update, UpdateTarget, compared, known, unknown
from snapfs.options import BackupOptions, format_size
from snapfs.stamps import utc_now
from snapfs.system.block_ioctl import size_bytes_of
from snapfs.system.device_identity import device_identity
from snapfs.whole import read_at_most

# In the facts of a manifest: who holds the checkpoint, and the map of used blocks that the backup was made by.
_FACTS: Final = "update"
_WORDS: Final = Words(WAY_OUT.removesuffix(" again"), "brought up to date", "the image")


@dataclass(frozen=True)
class Updated:
    """A backup that was brought up to date. `why`: why everything was read, else empty."""

    manifest: Manifest
    why: str
    read_bytes: int
    written_bytes: int


@dataclass
class Old:
    """The backup that is to be brought up to date, locked as long as `fd` is open. `holder`: the id by which its
    checkpoint is held. `why`: why nobody knows what it holds, else empty."""

    places: Places
    fd: int
    manifest: Manifest
    holder: str
    half: HalfWay | None
    why: str

    def close(self) -> None:
        """Let go of it, once."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def fits(self, source: Source, force: bool) -> bool:
        """Whether it can become a backup of the source. UsageError: it cannot, and nobody asked for a new one."""
        assert self.places.dest is not None
        check_image(self.places.dest.named, str(self.manifest.facts.get("image")), source, force, "a backup", "DEST")
        was, now = self.manifest.image_bytes, source.size_bytes
        if was == now:
            return True
        if not force:
            raise UsageError(
                f"The size of the image went from {format_size(was)} to {format_size(now)}, so "
                f"{self.places.dest.named} cannot be brought up to date; say --force to make all of it anew."
            )
        return False


def holder_at(places: Places) -> str | None:
    """The id by which the checkpoint of the backup that is there is held; None: nothing tells of any."""
    if places.manifest is None or places.manifest.is_new:
        return None
    try:
        return _holder_of(read_manifest(places.manifest.real))
    except SnapfsError:
        return None


def new_holder() -> str:
    """Such an id that nobody has."""
    return uuid.uuid4().hex


def _holder_of(manifest: Manifest) -> str | None:
    facts = manifest.facts.get(_FACTS)
    if isinstance(facts, dict) and isinstance(holder := facts.get("holder"), str):
        with contextlib.suppress(ValueError):
            return uuid.UUID(holder).hex
    return None


def noted(manifest: Manifest, holder: str, source: Source) -> Manifest:
    """The manifest of a backup that can be brought up to date by what is noted for that holder."""
    return replace(manifest, facts={**manifest.facts, _FACTS: {"holder": holder, "used": fingerprint(source.used)}})


# --- what is there -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def old_backup(options: BackupOptions, consent: Consent) -> Iterator[Old | None]:
    """What --update is about; None: all of DEST is to be made, which may need the consent of the user."""
    old = _opened(options, consent)
    try:
        yield old
    finally:
        if old is not None:
            old.close()


def _opened(options: BackupOptions, consent: Consent) -> Old | None:
    places = look_at_places(options.dest, options.manifest, {"the image": options.source})
    dest = places.dest
    assert dest is not None
    if places.manifest is None:
        raise UsageError(
            f"{dest.named} is a device, and has no manifest beside it; say --manifest FILE, always the same."
        )
    if dest.is_new or places.manifest.is_new:
        return None
    check_device(dest, options)
    fd = open_in_place(dest, Consent(), 0)
    try:
        # Another command may have been here before we had the lock.
        places = replace(places, manifest=look_at(places.manifest.named))
        old = _looked_at(places, fd, options, consent)
        if old is None:
            os.close(fd)
        return old
    except _AnewError as anew:
        os.close(fd)
        if consent.force:
            consent.note(f"{anew}, so all of {dest.named} is made anew.")
            return None
        raise UsageError(
            f"{anew}, so {dest.named} cannot be brought up to date; say --force to make all of it anew."
        ) from None
    except BaseException:
        os.close(fd)
        raise


class _AnewError(Exception):
    """What is there cannot be brought up to date, and why."""


def _looked_at(places: Places, fd: int, options: BackupOptions, consent: Consent) -> Old | None:
    dest, manifest_place = places.dest, places.manifest
    assert dest is not None
    assert manifest_place is not None
    try:
        manifest = read_manifest(manifest_place.real)
    except SnapfsError as error:
        raise _AnewError(error.sentence.partition("; ")[0].rstrip(".")) from error
    if manifest.format != "raw":
        raise _AnewError(f"{manifest_place.named} is of a backup in {manifest.format}")
    status = os.fstat(fd)
    if not dest.is_device and status.st_nlink != 1:
        raise _AnewError("The file has another name as well, and would change under that, too")
    if dest.is_device and size_bytes_of(fd) < manifest.image_bytes:
        raise _AnewError(f"The device is smaller than the backup that {manifest_place.named} is of")
    half = half_way_at(places)
    if half is None and options.resume and places.journal is not None and places.journal.exists():
        # That of a backup which was to take the place of this one.
        return None
    if half is None and options.resume:
        raise SnapfsError(
            f"There is nothing to resume: {dest.named} is not half brought up to date; leave out --resume."
        )
    if options.on_read_error == "skip" and places.rescue_map is not None:
        ask_for_rescue_map(places.rescue_map, consent)
    why = ""
    if not dest.is_device and status.st_size != manifest.image_bytes:
        # Who knows what it is.
        consent.ask_for(dest)
        why = f"the size of {dest.named} is another than when it was made"
    elif dest.is_device and manifest.facts.get("device") not in (None, device_identity(status.st_rdev)):
        # It may hold an older backup, and begin like this one. All of it is compared.
        consent.ask_for(dest)
        why = f"{dest.named} is another disk than that of {manifest_place.named}"
    elif half is not None and half.ranges is None:
        why = f"the note of what was written to {dest.named} is damaged"
    elif not (_is_same_disk if dest.is_device else _is_same_file)(fd, manifest, half):
        if dest.is_device:
            consent.ask_for(dest)
        why = f"somebody else has changed {dest.named} since it was made"
    if half is not None and not consent.quiet:
        consent.note(f"{half.state}, which is finished now.")
    return Old(places, fd, manifest, _holder_of(manifest) or new_holder(), half, why)


def _is_same_file(fd: int, manifest: Manifest, half: HalfWay | None) -> bool:
    """By its times; an interrupted update has changed those."""
    file, status = manifest.facts.get("file"), os.fstat(fd)
    try:
        return isinstance(file, dict) and (is_same(file, status) if half is None else file["inode"] == status.st_ino)
    except KeyError:
        return False


def _is_same_disk(fd: int, manifest: Manifest, half: HalfWay | None) -> bool:
    """By the first extent that nobody has written to since: not every disk says which one it is."""
    written = half.ranges if half is not None and half.ranges is not None else Ranges()
    for one in manifest.extents:
        place = (one.extent.offset, one.extent.length)
        if one.digest and not any(next(ranges.within(*place), None) for ranges in (written, manifest.unread)):
            content = memoryview(bytearray(one.extent.length))
            try:
                read_at_most(fd, content, one.extent.offset)
            except OSError:
                return False
            return blake3(content).digest() == one.digest
    return True


# --- what is done --------------------------------------------------------------------------------------------------


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
        manifest = noted(finished_manifest(source, update.plan, "raw", cut_facts), old.holder, source)
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
    cut, facts = manifest.facts.get("cut"), manifest.facts.get(_FACTS)
    cut_id = str(cut["id"]) if isinstance(cut, dict) and "id" in cut else None
    used = facts.get("used") if isinstance(facts, dict) else None
    return by_same_map(checkpoints.changes_since(cut_id), used, source.used)


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


def forget_half_way(places: Places) -> None:
    """All of DEST was made anew: what an interrupted update has noted of it is over, and names another manifest."""
    if places.update is not None and places.dest is not None:
        owner = None if places.dest.status is None else places.dest.status.st_uid
        with contextlib.suppress(SnapfsError):
            remove_note(places.update, {os.geteuid(), owner})


def half_way_at(places: Places) -> HalfWay | None:
    """Whether what is to be replaced is half brought up to date."""
    dest, manifest = places.dest, places.manifest
    if dest is None or dest.is_new or manifest is None or manifest.is_new:
        return None
    half = half_way(dest.real, manifest.real)
    return None if half is None else replace(half, backup=dest.named)
