"""Bounded reading from an image: the only way a reader of maps touches bytes.

Rules
1. Offsets are bytes from the start of the source (a filesystem, a partition), never of the image.
2. A read is wholly inside the source or it is refused: what an image says about itself never reaches past it.
3. One `read` allocates at most `MAX_READ_BYTES`, whatever a broken image asks for; larger tables go
   through `readinto` and a buffer whose size the reader has justified by the size of the source.
4. Everything that goes wrong is a `MapError`, so the region counts as wholly used.
"""

from __future__ import annotations

from typing import Protocol

from bitarray import bitarray

from snapfs.ahead import read_ahead
from snapfs.usedmap.result import MapError
from snapfs.whole import read_at_most

# The largest single structure any format needs at once is a btrfs node, an XFS log record or a few MiB
# of descriptors; 16 MiB leaves room and keeps an absurd length from exhausting memory.
MAX_READ_BYTES = 16 << 20


class PreadInto(Protocol):
    """Anything that can stand in for a file descriptor."""

    def preadv_into(self, buffer: memoryview, offset: int) -> int:
        """Fill `buffer` from `offset`; return how many bytes there were, fewer only at the end."""


class Source:
    """`size_bytes` bytes of a file descriptor (or a `PreadInto`) from `base_offset` on, read-only."""

    def __init__(self, fd: int | PreadInto, size_bytes: int, base_offset: int = 0) -> None:
        if size_bytes < 0 or base_offset < 0:
            raise ValueError("a source needs a size and a base offset of 0 or more")
        self._fd = fd
        self.size_bytes = size_bytes
        self.base_offset = base_offset

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes; `MapError` when out of range, too long, short or unreadable."""
        if length > MAX_READ_BYTES:
            raise MapError(f"a structure of {length} bytes is larger than any real one")
        self._check(offset, length)
        buffer = bytearray(length)
        self._fill(memoryview(buffer), offset)
        return bytes(buffer)

    def readinto(self, offset: int, buffer: memoryview | bytearray | bitarray) -> None:
        """Fill all of `buffer` (a numpy array goes in as `memoryview(array)`); `MapError` as for `read`."""
        with memoryview(buffer).cast("B") as view:
            self._check(offset, len(view))
            self._fill(view, offset)

    def will_read(self, offset: int, length: int) -> None:
        """That will be read soon, so that the disk may begin; never fails, wherever it points."""
        if isinstance(self._fd, int) and 0 <= offset <= offset + length <= self.size_bytes:
            read_ahead(self._fd, self.base_offset + offset, length)

    def window(self, offset: int, length: int) -> Source:
        """The part of this source at `offset` as a source of its own; it must lie wholly inside."""
        self._check(offset, length)
        return Source(self._fd, length, self.base_offset + offset)

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise MapError(f"it points to {length} bytes at {offset}, outside its {self.size_bytes} bytes")

    def _fill(self, view: memoryview, offset: int) -> None:
        done = self._read(view, self.base_offset + offset) if view else 0
        if done < len(view):
            raise MapError(f"only {done} of {len(view)} bytes at {offset} could be read")

    def _read(self, view: memoryview, offset: int) -> int:
        try:
            if isinstance(self._fd, int):
                return read_at_most(self._fd, view, offset)
            return self._fd.preadv_into(view, offset)
        except OSError as error:
            raise MapError(f"reading at {offset} failed: {error.strerror}") from error
