"""From a directory to a store that can be used: a new one, or the one that was left behind.

What is found decides (the crash table is in DESIGN.md):

=====================  =====================================================================================
no header              the store was never finished: begin a new snapshot
seal                   clean end: every map is checked against its checksum, then carried on as it is
no seal, same boot     processes were killed: what they stored through mappings is all there; carried on after
                       a check of the index against staging and segments
no seal, other boot    durability ``power``: maps are rebuilt from the records; ``process``: the snapshot is lost
=====================  =====================================================================================

Maps that are damaged are rebuilt from the records, which say which block they hold. What cannot be proven
right makes the snapshot DAMAGED: its reads fail, the image is untouched.
"""

from __future__ import annotations

import os
import stat
import time
import uuid
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from cow.bitmaps import bitmap_bytes
from cow.control import Control
from cow.errors import CowError, ImageChanged, StoreError
from cow.files import Files, MappedFile
from cow.geometry import Geometry
from cow.header import Header, read_header, write_header
from cow.image import Image
from cow.layout import CONTROL_BYTES, ENTRY_BYTES, STAGING_BYTES, Counter, Durability, Protect, State
from cow.rebuild import (
    adopt_staging,
    doubtful_blocks,
    forget_staging,
    mark_damaged,
    mend_index,
    recount,
    segment_sizes,
    settle_preserved,
)
from cow.seal import Seal, break_seal, broken_maps, read_seal
from cow.staging import Staging, file_bytes, slot_count
from cow.store import (
    BITMAP_NAMES,
    CONTROL_NAME,
    INDEX_NAME,
    SEGMENTS_NAME,
    STAGING_NAME,
    Store,
    cut_path,
    foreign_names,
    lock_store,
    open_cut,
    open_parts,
    remove_cuts,
    remove_store,
)

# How far the image's clock may be ahead of the last heartbeat of a server that was killed while it wrote.
_HEARTBEAT_SLACK_NS = 500_000_000


@dataclass(frozen=True, slots=True)
class Request:
    """What the caller wants a store for. ``boot_id``: 16 bytes that change with every boot."""

    image_path: str
    block_bytes: int
    boot_id: bytes
    durability: Durability = Durability.PROCESS
    protect: Protect = Protect.ALL
    staging_bytes: int = STAGING_BYTES


class Outcome(Enum):
    """What became of the snapshot that the store held before."""

    NEW = "new"
    CARRIED_ON = "carried on"
    LOST = "lost"


@dataclass(slots=True)
class Opened:
    """An open, locked store; ``notes`` are sentences for the user about what was found."""

    store: Store
    outcome: Outcome
    notes: list[str] = field(default_factory=list)


def open_store(path: Path, image: Image, request: Request, files: Files) -> Opened:
    """Lock the store at ``path`` and carry its snapshot on, or begin a new one.

    StoreError (StoreBusy, ImageChanged): the store is as it was. OSError: the disk refused.
    """
    made = _make_directory(path)
    lock_fd = -1
    try:
        lock_fd = lock_store(path)
        header = read_header(path)
        if header is None:
            return Opened(_begin(path, image, request, files, lock_fd), Outcome.NEW)
        return _carry_on(path, header, image, request, files, lock_fd)
    except BaseException:
        if lock_fd >= 0:
            os.close(lock_fd)
        if made:
            remove_store(path)
        raise


def _make_directory(path: Path) -> bool:
    try:
        path.mkdir(0o700)
    except FileExistsError:
        if not path.is_dir():
            raise StoreError(str(path), "is not a directory") from None
        foreign = foreign_names(path)
        if foreign:
            raise StoreError(str(path), f"holds other files ({foreign[0]}), so it is no snapfs store") from None
        return False
    return True


# --- a new snapshot ------------------------------------------------------------------------------------------


def _begin(path: Path, image: Image, request: Request, files: Files, lock_fd: int) -> Store:
    """The header is written last: without it, everything else is debris of a store never finished."""
    for name in (CONTROL_NAME, STAGING_NAME):
        (path / name).unlink(missing_ok=True)
    remove_cuts(path)
    header = _new_header(image, request)
    control = Control(path / CONTROL_NAME, files, writable=True, create=True)
    staging = Staging(
        path / STAGING_NAME, header.block_bytes, header.staging_slots, files, writable=True, create=True
    )
    cut = open_cut(path, header.generation, header.geometry, files, writable=True, create=True)
    store = Store(path, header, control, staging, cut, files, lock_fd)
    # What the image holds now must not be undone by a power loss: it is what the snapshot shows.
    image.sync()
    control[Counter.GENERATION] = header.generation
    control[Counter.IMAGE_MTIME_NS] = image.identity().mtime_ns
    control[Counter.STATE] = State.ACTIVE
    write_header(path, header, files)
    return store


def _new_header(image: Image, request: Request, generation: int = 1) -> Header:
    identity, info = image.identity(), os.fstat(image.fd)
    geometry = Geometry(image.size_bytes, request.block_bytes)
    return Header(
        block_bytes=geometry.block_bytes,
        image_bytes=geometry.image_bytes,
        image_dev=identity.dev,
        image_ino=identity.ino,
        image_mode=stat.S_IMODE(info.st_mode),
        image_uid=info.st_uid,
        image_gid=info.st_gid,
        image_atime_ns=info.st_atime_ns,
        image_mtime_ns=info.st_mtime_ns,
        taken_at_ns=time.time_ns(),
        generation=generation,
        staging_slots=slot_count(request.block_bytes, request.staging_bytes),
        durability=request.durability,
        protect=request.protect,
        is_device=identity.is_device,
        store_id=uuid.uuid4().bytes,
        boot_id=request.boot_id,
        snapshot_id=uuid.uuid4().bytes,
        image_path=request.image_path,
    )


# --- the snapshot that was left behind -----------------------------------------------------------------------


class _End(Enum):
    """How the last use of the store ended."""

    SEALED = "cleanly"
    KILLED = "by the death of its processes"
    POWER_LOST = "with the machine"


def _carry_on(path: Path, header: Header, image: Image, request: Request, files: Files, lock_fd: int) -> Opened:
    _check_image(path, header, image, request)
    seal = read_seal(path, header.generation)
    end = _End.SEALED if seal else _End.KILLED if header.boot_id == request.boot_id else _End.POWER_LOST
    if end is _End.POWER_LOST and header.durability is Durability.PROCESS:
        store = _begin(path, image, request, files, lock_fd)
        return Opened(store, Outcome.LOST, ["the snapshot did not survive the restart of the machine"])
    if seal and not header.is_device and seal.image_mtime_ns != image.identity().mtime_ns:
        raise _changed(path)
    if end is _End.KILLED:
        _check_killed_mtime(path, header, image, files)
    remove_cuts(path, keep=header.generation)
    replaced = _replace_unusable(path, header, files)
    store = open_parts(path, header, files, writable=True, lock_fd=lock_fd)
    try:
        notes = _repair(store, end, seal, replaced)
        store.header = replace(header, boot_id=request.boot_id, durability=request.durability)
        write_header(path, store.header, files)
        store.control[Counter.IMAGE_MTIME_NS] = image.identity().mtime_ns
        store.control[Counter.WRITING] = 0
        break_seal(path, header.generation, files)
    except BaseException:
        store.lock_fd = -1
        store.close()
        raise
    return Opened(store, Outcome.CARRIED_ON, notes)


def _check_image(path: Path, header: Header, image: Image, request: Request) -> None:
    identity = image.identity()
    same_boot = header.boot_id == request.boot_id
    same_file = identity.ino == header.image_ino and (identity.dev == header.image_dev or not same_boot)
    if identity.is_device != header.is_device or (not same_file and not identity.is_device):
        raise StoreError(str(path), f"belongs to another image ({header.image_path})")
    if image.size_bytes != header.image_bytes:
        raise _changed(path)
    if request.block_bytes != header.block_bytes:
        raise StoreError(str(path), f"has blocks of {header.block_bytes} bytes, not {request.block_bytes}")
    if request.durability > header.durability:
        raise StoreError(str(path), "holds a snapshot of durability 'process', which cannot become 'power'")


def _changed(path: Path) -> ImageChanged:
    return ImageChanged(
        str(path), "cannot carry its snapshot on: the image was changed by something else since it was last mounted"
    )


def _check_killed_mtime(path: Path, header: Header, image: Image, files: Files) -> None:
    """Processes died: the last write of theirs may be a little newer than what they noted."""
    if header.is_device:
        return
    try:
        control = Control(path / CONTROL_NAME, files)
    except (OSError, ValueError, CowError):
        return  # its loss makes the snapshot unreadable anyway
    mtime_ns = image.identity().mtime_ns
    noted_ns, beat_ns = control[Counter.IMAGE_MTIME_NS], control[Counter.HEARTBEAT_NS]
    writing = control[Counter.WRITING]
    control.close()
    if mtime_ns != noted_ns and not (writing and mtime_ns <= beat_ns + _HEARTBEAT_SLACK_NS):
        raise _changed(path)


def _replace_unusable(path: Path, header: Header, files: Files) -> set[str]:
    """Put an empty file in the place of each that is missing or has the wrong size; their names."""
    size = header.geometry.block_count
    cut = cut_path(path, header.generation)
    wanted = {CONTROL_NAME: (path / CONTROL_NAME, CONTROL_BYTES)}
    staging_bytes = file_bytes(header.block_bytes, header.staging_slots)
    wanted[STAGING_NAME] = (path / STAGING_NAME, staging_bytes)
    for name in BITMAP_NAMES:
        wanted[name] = (cut / name, bitmap_bytes(size))
    wanted[INDEX_NAME] = (cut / INDEX_NAME, size * ENTRY_BYTES)
    (cut / SEGMENTS_NAME).mkdir(0o700, parents=True, exist_ok=True)
    replaced = {name for name, (file, size_bytes) in wanted.items() if not _has_size(file, size_bytes)}
    if CONTROL_NAME not in replaced and not _is_control(path, files):
        replaced.add(CONTROL_NAME)
    for name in replaced:
        file, size_bytes = wanted[name]
        file.unlink(missing_ok=True)
        if name == CONTROL_NAME:
            Control(file, files, writable=True, create=True).close()
        else:
            MappedFile(file, size_bytes, files, writable=True, create=True).close()
    return replaced


def _has_size(file: Path, size_bytes: int) -> bool:
    try:
        return file.is_file() and file.stat().st_size == size_bytes
    except OSError:
        return False


def _is_control(path: Path, files: Files) -> bool:
    try:
        Control(path / CONTROL_NAME, files).close()
    except (OSError, ValueError, CowError):
        return False
    return True


def _repair(store: Store, end: _End, seal: Seal | None, replaced: set[str]) -> list[str]:
    """Make the store's maps agree with what it holds; sentences on what is lost."""
    control, cut = store.control, store.cut
    broken = replaced | set(broken_maps(store, seal) if seal else ())
    if seal:
        seal.restore(control)
    elif end is _End.POWER_LOST:
        control[Counter.STATE] = State.ACTIVE if cut.is_intact else State.OVERFLOWED
        broken |= {"index", "settled"}
    control[Counter.GENERATION] = cut.generation
    staged = adopt_staging(store) if end is _End.KILLED else forget_staging(store)
    if seal and not broken - {CONTROL_NAME, STAGING_NAME}:
        recount(store, records=False)
        return []
    lost = _mend(store, end, broken, staged)
    recount(store)
    return lost


def _mend(store: Store, end: _End, broken: set[str], staged: dict[int, int]) -> list[str]:
    control, cut = store.control, store.cut
    preserved = control[Counter.PRESERVED_BLOCKS]
    for name, file in (("index", cut.index.file), ("settled", cut.settled.file)):
        if name in broken:
            file.clear()
    doubtful = doubtful_blocks(store, staged, segment_sizes(store))
    lost_blocks = mend_index(store, staged, doubtful) if doubtful or broken or _lacks_entries(store) else 0
    settle_preserved(store)
    if end is _End.POWER_LOST:
        return []
    notes = []
    if _cannot_prove(store, end, broken, preserved):
        mark_damaged(store, unreadable=True)
        notes.append(f"the snapshot cannot be read any more: {', '.join(sorted(broken))} of the store is damaged")
    elif lost_blocks or _lacks_entries(store):
        mark_damaged(store)
        notes.append("the store is damaged: some blocks of the snapshot are lost and read as errors")
    elif broken:
        notes.append(f"damaged maps of the store were rebuilt: {', '.join(sorted(broken))}")
    return notes


def _lacks_entries(store: Store) -> bool:
    """Whether there are settled blocks for which nothing says why."""
    cut = store.cut
    preserved = sum(sum(1 for entry in entries if entry) for _, entries in cut.index.filled_runs())
    return cut.settled.count() > preserved + cut.free.count() + cut.released.count()


def _cannot_prove(store: Store, end: _End, broken: set[str], preserved: int) -> bool:
    """Whether a block that was overwritten might pass for one that is still owed."""
    given = {"free", "released"} & broken and (store.header.protect is Protect.USED or "settled" in broken)
    state_unknown = end is _End.KILLED and CONTROL_NAME in broken
    recovered = sum(sum(1 for entry in entries if entry) for _, entries in store.cut.index.filled_runs())
    both = {"index", "settled"} <= broken and (CONTROL_NAME in broken or recovered < preserved)
    return bool(given or state_unknown or both)
