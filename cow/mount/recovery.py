"""From a directory to a store that can be used: a new one, or the one that was left behind.

What is found decides (the crash table is in DESIGN.md):

=====================  =====================================================================================
no header              the store was never finished: begin a new snapshot
seal                   clean end: every map is checked against its checksum, then carried on as it is
no seal, same boot     processes were killed: what they stored through mappings is all there; carried on after
                       a check of the index against staging and segments
no seal, other boot    durability `power`: maps are rebuilt from the records; `process`: the snapshot is lost
=====================  =====================================================================================

Maps that are damaged are rebuilt from the records, which say which block they hold. What cannot be proven
right makes the snapshot DAMAGED: its reads fail, the image is untouched.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from cow.disk.cut import open_cut
from cow.disk.directory import (
    COMMON_NAMES,
    CONTROL_NAME,
    SEGMENTS_NAME,
    STAGING_NAME,
    foreign_names,
    holds_preserved,
    lock_store,
    remove_cuts,
    remove_segments,
    remove_store,
)
from cow.disk.files import Files
from cow.disk.filesystems import forbid_copying
from cow.disk.header import CutHeader, Header, cut_header, read_header, write_header
from cow.disk.image import Image
from cow.disk.layout import STAGING_BYTES, Counter, CutCounter, Durability, Protect, State
from cow.disk.numbers import Control, SharedPages
from cow.disk.revert_note import read_revert_note, remove_revert_note
from cow.disk.seal import break_seal, read_seal
from cow.disk.staging import Staging, slot_count
from cow.disk.store import Store, open_parts
from cow.errors import ImageChanged, NotAStore, StoreDamaged, StoreError
from cow.geometry import Geometry
from cow.mount.repair import End, is_control, repair, replace_unusable

# How far the image's clock may be ahead of the last heartbeat of a server that was killed while it wrote.
_HEARTBEAT_SLACK_NS = 500_000_000


@dataclass(frozen=True, slots=True)
class Request:
    """What the caller wants a store for. `boot_id`: 16 bytes that change with every boot."""

    image_path: str
    block_bytes: int
    boot_id: bytes
    durability: Durability = Durability.PROCESS
    protect: Protect = Protect.ALL
    staging_bytes: int = STAGING_BYTES
    # Which disk a block device is: a text that another one does not have, "" when nobody knows; with
    # `device_id_lasts` also after the next boot.
    device_id: str = ""
    device_id_lasts: bool = False
    # When this boot began, in ns since 1970; 0 when nobody knows.
    booted_ns: int = 0
    # Whether a store that has no snapshot begins with one.
    takes_snapshot: bool = True
    # Whether the snapshot with this id is known to be lost though its store, whose disk had failed, cannot tell.
    is_lost: Callable[[bytes], bool] = lambda snapshot_id: False


class Outcome(Enum):
    """What became of the snapshot that the store held before."""

    NEW = "new"
    CARRIED_ON = "carried on"
    LOST = "lost"


@dataclass(slots=True)
class Opened:
    """An open, locked store; `notes` are sentences for the user about what was found."""

    store: Store
    outcome: Outcome
    notes: list[str] = field(default_factory=list)


def open_store(path: Path, image: Image, request: Request, files: Files) -> Opened:
    """Lock the store at `path` and carry its snapshot on, or begin a new one.

    StoreError (StoreBusy, ImageChanged): the store is as it was. OSError: the disk refused.
    """
    made = _make_directory(path, files)
    lock_fd = -1
    try:
        lock_fd = lock_store(path)
        header = read_header(path)
        if header is None:
            if holds_preserved(path):
                raise StoreDamaged(str(path), "has lost its header")
            return Opened(_begin(path, image, request, files, lock_fd), Outcome.NEW)
        if not (header.shown or header.has_checkpoints) or _is_unseen(path, header, request, files):
            opened = Opened(_begin(path, image, request, files, lock_fd), Outcome.NEW)
        else:
            opened = _carry_on(path, header, image, request, files, lock_fd)
        if opened.outcome is not Outcome.CARRIED_ON and read_revert_note(path) is not None:
            # There is nothing left to go on with, nor to go back to.
            opened.notes.append(
                "a revert of the image was under way, and no snapshot is left: the image is partly of one instant "
                "and partly of another; restore it from a backup"
            )
            remove_revert_note(path, files)
        return opened
    except BaseException:
        if lock_fd >= 0:
            os.close(lock_fd)
        if made:
            remove_store(path)
        raise


def _is_unseen(path: Path, header: Header, request: Request, files: Files) -> bool:
    """Whether who made the snapshot was killed before anybody had it. After a restart nobody can tell any more."""
    if header.boot_id != request.boot_id or not is_control(path, files):
        return False
    control = Control(path / CONTROL_NAME, files)
    unseen = control.is_unseen
    control.close()
    return unseen


def _make_directory(path: Path, files: Files) -> bool:
    try:
        path.mkdir(0o700)
        forbid_copying(path)
        files.sync_directory(path.parent)
    except FileExistsError:
        if not path.is_dir():
            raise NotAStore(str(path), "is not a directory") from None
        foreign = foreign_names(path)
        if foreign:
            raise NotAStore(str(path), f"holds other files ({foreign[0]}), so it is no snapfs store") from None
        return False
    return True


# --- a new snapshot ------------------------------------------------------------------------------------------


def _begin(path: Path, image: Image, request: Request, files: Files, lock_fd: int) -> Store:
    """The header is written last: without it, everything else is debris of a store never finished.

    A store without a snapshot has one cut all the same, which is hidden, and which nothing is owed to.
    """
    for name in (CONTROL_NAME, STAGING_NAME):
        (path / name).unlink(missing_ok=True)
    remove_cuts(path)
    remove_segments(path)
    (path / SEGMENTS_NAME).mkdir(0o700, exist_ok=True)
    header = _new_header(image, request)
    pages = SharedPages()
    control = Control(path / CONTROL_NAME, files, writable=True, create=True, shared=pages.control)
    staging = Staging(
        path / STAGING_NAME, header.block_bytes, header.staging_slots, files, writable=True, create=True
    )
    cut = open_cut(path, header.cut.generation, header, files, writable=True, create=True, pages=pages)
    if not header.shown:
        cut.numbers[CutCounter.STATE] = State.NONE
    store = Store(path, header, control, staging, cut, files, lock_fd, pages)
    # What the image holds now must not be undone by a power loss: it is what the snapshot shows.
    image.sync()
    control[Counter.GENERATION] = header.cut.generation
    control[Counter.NEXT_SEGMENT] = 1
    control[Counter.IMAGE_MTIME_NS] = image.identity().mtime_ns
    write_header(path, header, files)
    return store


def _new_header(image: Image, request: Request) -> Header:
    identity, geometry = image.identity(), Geometry(image.size_bytes, request.block_bytes)
    return Header(
        block_bytes=geometry.block_bytes,
        image_bytes=geometry.image_bytes,
        image_dev=identity.dev,
        image_ino=identity.ino,
        staging_slots=slot_count(request.block_bytes, request.staging_bytes),
        durability=request.durability,
        protect=request.protect,
        is_device=identity.is_device,
        store_id=uuid.uuid4().bytes,
        boot_id=request.boot_id,
        image_path=request.image_path,
        device_id=request.device_id,
        cuts=(replace(cut_header(image, 1), is_hidden=not request.takes_snapshot),),
    )


# --- the snapshot that was left behind -----------------------------------------------------------------------


def _carry_on(path: Path, header: Header, image: Image, request: Request, files: Files, lock_fd: int) -> Opened:
    _check_image(path, header, image, request)
    if request.is_lost(header.cut.snapshot_id):
        store = _begin(path, image, request, files, lock_fd)
        return Opened(store, Outcome.LOST, ["the store's disk failed while it was in use, and the snapshot was lost"])
    generations = [cut.generation for cut in header.cuts]
    seals = [read_seal(path, generation) for generation in generations]
    seal = seals[-1]
    end = End.SEALED if seal else End.KILLED if header.boot_id == request.boot_id else End.POWER_LOST
    if end is End.POWER_LOST and header.durability is Durability.PROCESS:
        store = _begin(path, image, request, files, lock_fd)
        return Opened(store, Outcome.LOST, ["the snapshot did not survive the restart of the machine"])
    if header.is_device and not _is_same_disk(header, request):
        store = _begin(path, image, request, files, lock_fd)
        return Opened(
            store, Outcome.LOST, ["nobody can tell whether this device is the same disk as before the restart"]
        )
    if end is End.POWER_LOST and not header.is_device and image.identity().mtime_ns > request.booted_ns > 0:
        raise _changed(path)  # by nobody of us: before this boot its time cannot have been that late
    if seal and not header.is_device and seal.image_mtime_ns != image.identity().mtime_ns:
        raise _changed(path)
    if end is End.KILLED:
        _check_killed_mtime(path, header, image, files)
    remove_cuts(path, keep=generations)
    remove_segments(path, generations)
    # What all have in common is replaced for the first, and missed by all.
    replaced = [replace_unusable(path, header, generation, files) for generation in generations]
    common = replaced[0] & COMMON_NAMES
    store = open_parts(path, header, files, writable=True, lock_fd=lock_fd)
    try:
        notes = []
        for facts, one, its_seal, missing in zip(header.cuts, store.of_each_cut(), seals, replaced, strict=True):
            if request.is_lost(facts.snapshot_id):
                one.cut.note_unreadable(files)
                if not facts.is_hidden:
                    notes.append(f"the store's disk failed in use, and the snapshot {facts.name} was lost")
            # One that was sealed with the others, and whose seal is gone, is looked at as if it had not been.
            its_end = End.KILLED if end is End.SEALED and its_seal is None else end
            found = repair(one, its_end, its_seal, missing | common)
            notes += [_about(header, facts) + sentence for sentence in found]
        notes += _not_followed(header, request)
        if not header.shown and request.takes_snapshot:
            notes.append("the store has no snapshot, only checkpoints; take one (snapfs snapshot)")
        if header.is_device and any(facts.holders for facts in header.cuts):
            # A device has no time that would tell whether somebody else wrote to it.
            header = replace(header, cuts=tuple(replace(facts, holders=()) for facts in header.cuts))
            notes.append("nobody knows what was written to the device meanwhile, so its checkpoints are void")
        store.header = replace(
            header,
            boot_id=request.boot_id,
            durability=request.durability,
            image_dev=image.identity().dev,
            device_id=request.device_id,
        )
        write_header(path, store.header, files)
        store.control[Counter.IMAGE_MTIME_NS] = image.identity().mtime_ns
        store.control[Counter.WRITING] = 0
        # The newest first: its seal says that the end was clean.
        for generation in reversed(generations):
            break_seal(path, generation, files)
    except BaseException:
        store.lock_fd = -1
        store.close()
        raise
    return Opened(store, Outcome.CARRIED_ON, notes)


def _about(header: Header, facts: CutHeader) -> str:
    """Which of several snapshots; those of a deleted one, others still read."""
    if len(header.cuts) == 1:
        return ""
    return f"snapshot {facts.name}: " if facts.name else f"cut {facts.generation}: "


def _not_followed(header: Header, request: Request) -> list[str]:
    """What was asked for and cannot be of a snapshot that was begun otherwise."""
    notes = []
    if request.protect is not header.protect:
        which = {Protect.ALL: "every block", Protect.USED: "used blocks only"}[header.protect]
        notes.append(f"this snapshot protects {which}, as it was begun, and so do new cuts in its store")
    if request.durability < header.durability:
        notes.append("this snapshot no longer survives a power loss, as it goes on with durability 'process'")
    return notes


def _check_image(path: Path, header: Header, image: Image, request: Request) -> None:
    identity = image.identity()
    # Device numbers may be given out anew at every boot.
    same_dev = identity.dev == header.image_dev or header.boot_id != request.boot_id
    if header.is_device and header.device_id and request.device_id:
        # One disk may come back under another number, and another disk under this one.
        is_comparable = request.device_id_lasts or header.boot_id == request.boot_id
        same_dev = header.device_id == request.device_id or not is_comparable
    same_file = identity.ino == header.image_ino and same_dev and identity.is_device == header.is_device
    if not same_file:
        raise StoreError(str(path), f"belongs to another image ({header.image_path})")
    if image.size_bytes != header.image_bytes:
        raise _changed(path)
    if request.block_bytes != header.block_bytes:
        raise StoreError(str(path), f"has blocks of {header.block_bytes} bytes, not {request.block_bytes}")
    if request.durability > header.durability:
        raise StoreError(str(path), "holds a snapshot of durability 'process', which cannot become 'power'")


def _is_same_disk(header: Header, request: Request) -> bool:
    """Whether that is known; two disks with blocks of both in one snapshot are worse than none."""
    if header.boot_id == request.boot_id:
        return True
    return request.device_id_lasts and header.device_id == request.device_id


def _changed(path: Path) -> ImageChanged:
    return ImageChanged(
        str(path), "cannot carry its snapshot on: the image was changed by something else since it was last mounted"
    )


def _check_killed_mtime(path: Path, header: Header, image: Image, files: Files) -> None:
    """Processes died: the last write of theirs may be a little newer than what they noted."""
    if header.is_device:
        return
    if not is_control(path, files):
        return  # its loss makes the snapshot unreadable anyway
    control = Control(path / CONTROL_NAME, files)
    mtime_ns = image.identity().mtime_ns
    noted_ns, beat_ns = control[Counter.IMAGE_MTIME_NS], control[Counter.HEARTBEAT_NS]
    writing = control[Counter.WRITING]
    control.close()
    if mtime_ns != noted_ns and not (writing and mtime_ns <= beat_ns + _HEARTBEAT_SLACK_NS):
        raise _changed(path)
