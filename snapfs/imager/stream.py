"""A raw backup that comes through a pipe: from start to end, once, as it is or as zstd.

Rules
- Whether it is zstd is seen by its first bytes.
- What comes between two extents is read and dropped: whoever sends it is not cut off.
- With a manifest it must end where the image does. Without one it says nothing of where that is, unless a frame of
  zstd is cut short: a raw stream that ends too early looks like a smaller image.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from snapfs.destination.access import NEW_MODE, Access
from snapfs.errors import BackupDamagedError, SnapfsError, UsageError
from snapfs.imager import zstd

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

STANDARD_INPUT: Final = Path("-")
NAME: Final = "The standard input"
WAY_OUT: Final = "send it again"
# What it is for system calls; of a pipe it leads to nothing.
OPEN_PATH: Final = Path("/proc/self/fd/0")
_DROPPED_BYTES: Final = 1 << 20
_BUFFER_BYTES: Final = 1 << 20


class StreamReader:
    """The standard input as the content of a backup. `size_bytes` as its manifest says."""

    def __init__(self, size_bytes: int = 0) -> None:
        """UsageError: nothing comes from there."""
        self.size_bytes = size_bytes
        self._offset = 0
        self._input = _Input(_checked_fd())
        self._dropped = memoryview(bytearray(_DROPPED_BYTES))
        self._pieces: Iterator[bytes] | None = None
        self._piece = memoryview(b"")
        if zstd.is_magic(self._input.head):
            self._pieces = zstd.pieces(io.BufferedReader(self._input, _BUFFER_BYTES), NAME, WAY_OUT)

    def access(self) -> Access:
        """Of what is made of it: as private as a file that it comes from; of a pipe nobody knows."""
        return Access.of(0) if stat.S_ISREG(os.fstat(0).st_mode) else Access(NEW_MODE)

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view`; `offset` is never before what was read. BackupDamagedError: it ends before."""
        self._skip_to(offset)
        if self.read_some(view) < len(view):
            raise self._cut_short()

    def read_some(self, view: memoryview) -> int:
        """Fill `view` with what comes next; how many bytes there were, fewer only at the end."""
        done = 0
        while done < len(view) and (count := self._next(view[done:])):
            done += count
        self._offset += done
        return done

    def check_end(self) -> None:
        """Read what is left. BackupDamagedError unless it ends where the image does."""
        self._skip_to(self.size_bytes)
        if self.read_some(self._dropped[:1]):
            raise BackupDamagedError(f"{NAME} goes on behind the {self.size_bytes} bytes of its manifest; {WAY_OUT}.")

    def close(self) -> None:
        """It is the caller's."""

    def _skip_to(self, offset: int) -> None:
        while self._offset < offset:
            if not self.read_some(self._dropped[: min(offset - self._offset, _DROPPED_BYTES)]):
                raise self._cut_short()

    def _cut_short(self) -> BackupDamagedError:
        return BackupDamagedError(
            f"{NAME} ends after {self._offset} bytes, its manifest says {self.size_bytes}; {WAY_OUT}."
        )

    def _next(self, view: memoryview) -> int:
        if self._pieces is None:
            return self._input.readinto(view)
        if not self._piece:
            self._piece = memoryview(next(self._pieces, b""))
        count = min(len(view), len(self._piece))
        view[:count] = self._piece[:count]
        self._piece = self._piece[count:]
        return count


class _Input(io.RawIOBase):
    """A pipe whose first bytes are known already."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.head = b""
        while len(self.head) < len(zstd.MAGIC) and (more := self._read(len(zstd.MAGIC) - len(self.head))):
            self.head += more
        self._left = self.head

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer)
        if self._left:
            count = min(len(view), len(self._left))
            view[:count], self._left = self._left[:count], self._left[count:]
            return count
        return os.readv(self._fd, [view])

    def _read(self, count: int) -> bytes:
        try:
            return os.read(self._fd, count)
        except OSError as error:
            raise SnapfsError(f"{NAME} cannot be read: {error.strerror}; pipe a backup into it.") from error


def _checked_fd() -> int:
    if os.isatty(0):
        raise UsageError(f"{NAME} is a terminal; pipe a backup into it, or name a file.")
    return 0
