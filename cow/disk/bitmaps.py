"""A bit for each block, in a sparse mapped file shared by all processes.

The live server alone sets bits; the others look. A new map is one hole: all zeros, no space on disk, made in
constant time. Bits are little-endian within each byte, so bit `block_no` is the same everywhere.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from bitarray import bitarray

from cow.disk.files import Files
from cow.disk.mapped_file import MappedFile

_PIECE_BYTES = 1 << 20


def bitmap_bytes(block_count: int) -> int:
    """Size of the file that holds `block_count` bits."""
    return -(-block_count // 8)


class Bitmap:
    """The bits of blocks 0 to `block_count`. Ranges are half-open block numbers `first, end`."""

    def __init__(
        self, path: Path, block_count: int, files: Files, *, writable: bool = False, create: bool = False
    ) -> None:
        self.file = MappedFile(path, bitmap_bytes(block_count), files, writable=writable, create=create)
        self.block_count = block_count
        self._bits = bitarray(buffer=self.file.map, endian="little")
        # A turn at the bytes that neighbours share, where they are written.
        self._writing = threading.Lock()

    def get(self, block_no: int) -> bool:
        return bool(self._bits[block_no])

    def any_set(self, first: int, end: int) -> bool:
        return self._bits.find(1, first, end) >= 0

    def all_set(self, first: int, end: int) -> bool:
        return self._bits.find(0, first, end) < 0

    def count_set(self, first: int, end: int) -> int:
        return self._bits.count(1, first, end)

    def set_range(self, first: int, end: int) -> None:
        """Set the bits; OSError(ENOSPC) when the disk has no room for them, and then none is set."""
        self.allocate(first, end)
        self.set_allocated(first, end)

    def set_allocated(self, first: int, end: int) -> None:
        """Set bits that were allocated before; OSError only where the file is written (see `MappedFile`).

        Threads may set different bits at once: through the mapping that is one step for all of them.
        """
        if self.file.is_written:
            with self._writing:
                self._write(first, end)
        elif end - first == 1:
            self._bits[first] = 1
        else:
            self._bits[first:end] = 1

    def _write(self, first: int, end: int) -> None:
        """The same by writing the bytes that hold them, a piece at a time."""
        while first < end:
            low = first // 8
            high = min((end - 1) // 8 + 1, low + _PIECE_BYTES)
            bits = bitarray(endian="little")
            bits.frombytes(self.file.map[low:high])
            stop = min(end, high * 8)
            bits[first - low * 8 : stop - low * 8] = 1
            self.file.store(low, bits.tobytes())
            first = stop

    def allocate(self, first: int, end: int, *, may_wait: bool = True) -> bool:
        """Make a later `set_range` of these bits certain to succeed; see `MappedFile.ensure`."""
        return self.file.ensure(first // 8, (end - 1) // 8 + 1 - first // 8, may_wait=may_wait)

    def clear_runs(self, first: int, end: int) -> list[tuple[int, int]]:
        """The runs of zeros between `first` and `end`."""
        if self._bits.find(1, first, end) < 0:
            return [(first, end)]
        return list(self._runs(0, first, end))

    def runs(self, first: int, end: int) -> Iterator[tuple[bool, int, int]]:
        """`(is set, first, end)` for all of the range, as the bits were when each run was reached."""
        bits = self._bits
        while first < end:
            value = bits[first]
            stop = bits.find(not value, first, end)
            stop = end if stop < 0 else stop
            yield bool(value), first, stop
            first = stop

    def _runs(self, value: int, first: int, end: int) -> Iterator[tuple[int, int]]:
        bits = self._bits
        start = bits.find(value, first, end)
        while start >= 0:
            stop = bits.find(1 - value, start, end)
            if stop < 0:
                yield start, end
                return
            yield start, stop
            start = bits.find(value, stop, end)

    def set_runs(self, first: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
        """The runs of ones between `first` and `end` (all of it), read from the parts of the file that exist
        only."""
        end = self.block_count if end is None else end
        for offset, length in self.file.data_ranges(first // 8, bitmap_bytes(end)):
            yield from self._runs(1, max(first, offset * 8), min((offset + length) * 8, end))

    def groups_with_set(self, group_blocks: int) -> Iterator[int]:
        """The numbers of the groups of so many neighbours in which a bit is set, in order, read as `set_runs`."""
        find, after = self._bits.find, 0
        for offset, length in self.file.data_ranges():
            end = min((offset + length) * 8, self.block_count)
            block_no = find(1, max(after, offset * 8), end)
            while block_no >= 0:
                group = block_no // group_blocks
                yield group
                after = (group + 1) * group_blocks
                block_no = find(1, after, end) if after < end else -1

    def bits(self, first: int, end: int) -> bitarray:
        """Those of a few blocks, as they are now, in memory of the caller's own."""
        return self._bits[first:end]

    def copy(self) -> bitarray:
        """All bits as they are now, in memory of the caller's own; the holes of the file are not touched."""
        bits = bitarray(self.block_count, "little")
        for offset, length in self.file.data_ranges():
            first, end = offset * 8, min((offset + length) * 8, self.block_count)
            bits[first:end] = self._bits[first:end]
        return bits

    def slice(self, first: int, end: int) -> bitarray:
        """The bits as they are now, in memory of the caller's own."""
        return self._bits[first:end]

    def count(self) -> int:
        """All ones, without touching the holes."""
        return sum(
            self._bits.count(1, offset * 8, min((offset + length) * 8, self.block_count))
            for offset, length in self.file.data_ranges()
        )

    def close(self) -> None:
        del self._bits
        self.file.close()
