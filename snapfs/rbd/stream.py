"""A diff of an RBD image as a stream: what `rbd import-diff` takes and `rbd export-diff` gives.

Source: "RBD Incremental Backup", doc/dev/rbd-diff.rst of Ceph, version 1. After the line "rbd diff v1" come records,
each a letter and what belongs to it, all numbers little-endian:

    f  u32 length, name of the snapshot that the diff begins at    t  the same of the one it leads to
    s  u64 size of the image                                       e  the end
    w  u64 offset, u64 length, the bytes                           z  u64 offset, u64 length of zeros
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from snapfs.errors import BackupDamagedError, SnapfsError
from snapfs.imager.extents import read_extent, read_size
from snapfs.imager.sparse import data_runs
from snapfs.whole import put_whole

_HEADER: Final = b"rbd diff v1\n"
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_RANGE: Final = struct.Struct("<QQ")
_MAX_NAME_BYTES: Final = 4096
# Whoever reads a record has all of it in memory: no more than an object has.
_MAX_DATA_BYTES: Final = 4 << 20

Read = Callable[[int], bytes]


class DiffTarget:
    """Writes a diff from the snapshot `since` (None: an empty image) to `until` into the pipe `fd`. What reads as
    zeros is told only where there may be something else."""

    is_durable = False

    def __init__(self, fd: int, name: str, size_bytes: int, since: str | None, until: str) -> None:
        """`name` is what the other end is called."""
        self._fd, self.name, self._is_new = fd, name, since is None
        self._put(_HEADER)
        for letter, snapshot in ((b"f", since), (b"t", until)):
            if snapshot is not None:
                self._put(letter + _U32.pack(len(snapshot.encode())) + snapshot.encode())
        self._put(b"s" + _U64.pack(size_bytes))

    def write(self, view: memoryview, offset: int) -> None:
        done = 0
        for start, stop in data_runs(view):
            self.hide(offset + done, start - done)
            for first in range(start, stop, _MAX_DATA_BYTES):
                piece = view[first : min(first + _MAX_DATA_BYTES, stop)]
                self._put(b"w" + _RANGE.pack(offset + first, len(piece)))
                self._put(piece)
            done = stop
        self.hide(offset + done, len(view) - done)

    def write_zeros(self, offset: int, length: int) -> None:
        """What is to be zeros is known beforehand, see `hide`; nothing is said of the rest."""

    def hide(self, offset: int, length: int) -> None:
        """Zeros, whatever the snapshot has there that the diff begins at."""
        if length and not self._is_new:
            self._put(b"z" + _RANGE.pack(offset, length))

    def sync(self) -> None:
        """Nobody can know where it is before the end."""

    def finish(self) -> None:
        self._put(b"e")

    def close(self) -> None:
        """The pipe is the caller's."""

    def _put(self, data: bytes | memoryview) -> None:
        try:
            put_whole(self._fd, memoryview(data))
        except OSError as error:
            # What it said of its end says more.
            raise SnapfsError(f"{self.name} takes no more: {error.strerror}; back up again.") from error


def read_diff(read: Read, write: Callable[[memoryview, int], None], write_zeros: Callable[[int, int], None]) -> int:
    """Hand what a diff tells of to `write` and `write_zeros`; the size of the image.

    `read(count)` gives as many bytes, or fewer at the end. BackupDamagedError: it is no whole diff.
    """
    if read(len(_HEADER)) != _HEADER:
        raise BackupDamagedError("It does not begin as a diff of rbd does; export it again.")
    size_bytes = -1
    try:
        while (letter := read(1)) != b"e":
            if letter == b"s":
                size_bytes = read_size(_number(read))
            elif letter in (b"f", b"t"):
                _skip_name(read)
            elif letter in (b"w", b"z") and size_bytes >= 0:
                _read_range(read, letter == b"w", size_bytes, write, write_zeros)
            else:
                raise ValueError("it ends too early" if not letter else f"there is no record {letter!r}")
    except ValueError as error:
        raise BackupDamagedError(f"It is no whole diff of rbd: {error}; export it again.") from error
    return size_bytes


def _read_range(
    read: Read,
    has_data: bool,
    size_bytes: int,
    write: Callable[[memoryview, int], None],
    write_zeros: Callable[[int, int], None],
) -> None:
    extent = read_extent(_number(read), _number(read), is_zeros=not has_data)
    if extent.end > size_bytes:
        raise ValueError("it reaches past the image")
    if not has_data:
        write_zeros(extent.offset, extent.length)
        return
    for offset, length in extent.pieces(_MAX_DATA_BYTES):
        write(memoryview(_exactly(read, length)), offset)


def _skip_name(read: Read) -> None:
    (length,) = _U32.unpack(_exactly(read, _U32.size))
    if length > _MAX_NAME_BYTES:
        raise ValueError("a name is too long")
    _exactly(read, length)


def _number(read: Read) -> int:
    (number,) = _U64.unpack(_exactly(read, _U64.size))
    return int(number)


def _exactly(read: Read, count: int) -> bytes:
    data = read(count)
    if len(data) != count:
        raise ValueError("it ends too early")
    return data
