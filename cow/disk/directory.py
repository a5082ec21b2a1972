"""The store as a directory: its names, its lock, whether it has a header, and what of it is removed.

    header          what the store is for (the commit point); header.spare is room for the next one
    control         the numbers the processes share
    staging         the ring
    reverting       while the image is being reverted: to which snapshot
    lock            held with flock while the store is in use; the holder's process number in it
    segments/       the records of all cuts: 00000001-00000001 and so on, by number and generation
    cut-00000001/   settled, changed, released, free, index, numbers; free.seal once the map of free blocks is
                    known; times, when parts were changed; intact, which the end of the snapshot renames; and seal
                    after a clean end

Only these names are ever removed: whatever else a user put there stays, and the directory with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from cow.disk.header import HEADER_NAME, SPARE_NAME, Header, read_header
from cow.disk.plain import open_plain
from cow.disk.segment_files import present_segments
from cow.errors import StoreBusy, StoreDamaged, StoreError

CONTROL_NAME, STAGING_NAME, LOCK_NAME, SEAL_NAME = "control", "staging", "lock", "seal"
SOCKET_NAME, LOG_NAME = "socket", "log"
UNFINISHED_NAME = HEADER_NAME + ".new"
REVERTING_NAME = "reverting"
NEW_REVERTING_NAME = REVERTING_NAME + ".new"
# The files that are no cut's.
COMMON_NAMES = frozenset({CONTROL_NAME, STAGING_NAME, "segments"})
_REVERT_NAMES = frozenset({REVERTING_NAME, NEW_REVERTING_NAME})
_PLAIN_NAMES = _REVERT_NAMES | {
    HEADER_NAME,
    SPARE_NAME,
    UNFINISHED_NAME,
    CONTROL_NAME,
    STAGING_NAME,
    LOCK_NAME,
    SOCKET_NAME,
    LOG_NAME,
}
_CUT_PREFIX = "cut-"
# What FUSE and NFS rename a file to that is removed while it is open, until it is closed.
_STAND_INS = (".fuse_hidden", ".nfs")
BITMAP_NAMES = ("settled", "changed", "released", "free")
INDEX_NAME, NUMBERS_NAME, SEGMENTS_NAME = "index", "numbers", "segments"
# With durability `power` only.
TOUCHED_NAME = "touched"
FREE_SEAL_NAME = "free.seal"
# When parts of the image were changed; the same before the map of free blocks is known, and that of the cut before.
TIMES_NAME, BEGUN_TIMES_NAME, FREE_BEFORE_NAME = "times", "times.begun", "free.before"
# An empty file under one of these names says what the disk knows of the snapshot's end; no name: overflowed.
INTACT_NAME, OVERFLOWED_NAME, UNREADABLE_NAME = "intact", "overflowed", "unreadable"


def cut_path(store: Path, generation: int) -> Path:
    return store / f"{_CUT_PREFIX}{generation:08d}"


def lock_store(path: Path) -> int:
    """Take the store for this process and its children; StoreBusy when another has it."""
    fd = open_plain(path / LOCK_NAME, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise StoreBusy(str(path), int(text) if text.isdecimal() else None) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def holds_preserved(path: Path) -> bool:
    """Whether a cut in the store ever preserved anything: then a missing header is damage, not a new store."""
    if (path / UNFINISHED_NAME).exists():
        return False
    return any(_holds_data(path / name / INDEX_NAME) for name in os.listdir(path) if _is_cut(name))


def _holds_data(path: Path) -> bool:
    """Whether the file has a byte that is not zero; holes are not read."""
    try:
        with open(open_plain(path, os.O_RDONLY), "rb") as file:
            offset = 0
            while piece := os.pread(file.fileno(), 1 << 20, offset := os.lseek(file.fileno(), offset, os.SEEK_DATA)):
                if any(piece):
                    return True
                offset += len(piece)
    except OSError:
        pass  # no such file, or nothing but a hole from here on
    return False


def foreign_names(path: Path) -> list[str]:
    """Names in the directory that no store has: a sign that it is the user's, not ours."""
    known = _PLAIN_NAMES | {SEGMENTS_NAME}
    names = (name for name in os.listdir(path) if name not in known and not _is_cut(name))
    return sorted(name for name in names if not name.startswith(_STAND_INS))


def header_of(path: Path) -> Header:
    """Of a store that is only looked at. StoreError: there is none; StoreDamaged: what is in it tells that there was
    one."""
    header = read_header(path)
    if header is not None:
        return header
    if path.is_dir() and not foreign_names(path) and holds_preserved(path):
        raise StoreDamaged(str(path), "has lost its header")
    raise StoreError(str(path), "holds no snapshot")


def _is_cut(name: str) -> bool:
    return name.startswith(_CUT_PREFIX) and name[len(_CUT_PREFIX) :].isdecimal()


def remove_cuts(path: Path, keep: Iterable[int] = ()) -> None:
    """Remove the directories of all cuts but the generations `keep`, as far as the disk lets them go.

    One that stays is debris: a filesystem may keep a name for a file that is still open, or refuse altogether.
    """
    kept = {cut_path(path, generation).name for generation in keep}
    for name in os.listdir(path):
        if _is_cut(name) and name not in kept:
            remove_tree(path / name)


def remove_segments(path: Path, cuts: Sequence[int] = ()) -> None:
    """Remove the segments that are of none of the generations `cuts`, the oldest first, nor between two of them
    (those were merged): as far as the disk lets them go.

    OSError when one of a later cut stays: its records would pass for those of a cut to come.
    """
    directory = path / SEGMENTS_NAME
    if directory.is_symlink() or not directory.is_dir():
        directory.unlink(missing_ok=True)
        return
    oldest, newest = (cuts[0], cuts[-1]) if cuts else (0, -1)
    for _, generation, file in present_segments(directory):
        if not oldest <= generation <= newest:
            try:
                file.unlink()
            except OSError:
                if generation > newest:
                    raise


def remove_cut(path: Path, generation: int) -> None:
    """Remove what there is of one cut that nobody holds."""
    remove_tree(cut_path(path, generation))


def remove_tree(path: Path) -> None:
    """Whatever is in the place of a cut's directory; a link goes, what it leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # by descriptors, which follows no link either
    else:
        path.unlink(missing_ok=True)


def remove_store(path: Path) -> None:
    """Remove what is ours, header first: a store half removed is one that was never finished."""
    if not path.is_dir():
        return  # somebody did it before
    with contextlib.suppress(FileNotFoundError):
        # A header that goes missing in any other way leaves no such name behind.
        os.rename(path / HEADER_NAME, path / UNFINISHED_NAME)
    remove_cuts(path)
    with contextlib.suppress(OSError):
        remove_segments(path)
        (path / SEGMENTS_NAME).rmdir()
    # Debris without this name beside it would look like a store that lost its header.
    kept = {UNFINISHED_NAME} if any(map(_is_cut, os.listdir(path))) else set()
    for name in sorted(_PLAIN_NAMES - kept):
        with contextlib.suppress(OSError):
            os.unlink(path / name)
    with contextlib.suppress(OSError):
        path.rmdir()
