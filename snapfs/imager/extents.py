"""What is imaged of an image: extents, in ascending order.

Rules
1. An extent consists of whole cells of 64 KiB; the last one of the image may be shorter. A cell is imaged when any
   block in it is used; what is free in such a cell is imaged as zeros. So there are few extents and large requests
   however scattered the used blocks are, and a cluster of qcow2 is written once.
2. An extent never crosses a border of 16 MiB. So each hash covers little, and what is checked, released or
   resumed comes in small pieces. Runs of zeros, which nobody has to read, are as long as they like.
3. What is in no extent is free: zeros in the backup, zeros or left alone by a restore.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bitarray import bitarray
from bitarray.util import intervals, zeros

from cow import MAX_IMAGE_BYTES

CELL_BYTES = 64 << 10
EXTENT_BYTES = 16 << 20
_ZERO_BYTES = bytes(1 << 20)


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes at `offset` of the image; with `is_zeros` they are known to be zeros without reading."""

    offset: int
    length: int
    is_zeros: bool = False

    @property
    def end(self) -> int:
        return self.offset + self.length

    def pieces(self, piece_bytes: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of the extent in requests of at most `piece_bytes`."""
        for offset in range(self.offset, self.end, piece_bytes):
            yield offset, min(piece_bytes, self.end - offset)


def read_size(value: Any) -> int:
    """A size or an offset as a file of somebody else has it; ValueError when no image can have it."""
    if type(value) is not int or not 0 <= value <= MAX_IMAGE_BYTES:
        raise ValueError(f"{value!r:.40} is no size or offset in an image")
    return value


def read_extent(offset: Any, length: Any, *, is_zeros: bool) -> Extent:
    """The same for an extent, which is never empty."""
    extent = Extent(read_size(offset), read_size(length), is_zeros)
    if not extent.length:
        raise ValueError(f"the extent at {offset} is empty")
    read_size(extent.end)
    return extent


def read_range(offset: Any, length: Any) -> tuple[int, int]:
    """The same for offset and length of some bytes."""
    extent = read_extent(offset, length, is_zeros=False)
    return extent.offset, extent.length


def plan(used: bitarray, block_bytes: int, size_bytes: int, hole_cells: bitarray | None = None) -> list[Extent]:
    """The extents of an image whose `used` blocks are known; cells in `hole_cells` hold nothing but zeros."""
    cells = used_cells(used, block_bytes, size_bytes)
    if hole_cells is None:
        return list(extents_of(cells, size_bytes))
    found = [*extents_of(cells & ~hole_cells, size_bytes)]
    found += extents_of(cells & hole_cells, size_bytes, is_zeros=True)
    return sorted(found, key=lambda extent: extent.offset)


def used_cells(used: bitarray, block_bytes: int, size_bytes: int) -> bitarray:
    """One bit per cell: whether any block that it touches is used."""
    cells = zeros(cell_count(size_bytes), "little")
    for _, first, end in _set_intervals(used):
        start = first * block_bytes
        stop = min(end * block_bytes, size_bytes)
        cells[start // CELL_BYTES : -(-stop // CELL_BYTES)] = 1
    return cells


def cell_count(size_bytes: int) -> int:
    """How many cells an image has; the last one may be a part of one."""
    return -(-size_bytes // CELL_BYTES)


def cells_of(ranges: Iterable[tuple[int, int]], count: int) -> bitarray:
    """A bit for each of `count` cells: whether a range (offset, length) touches it."""
    cells = zeros(count, "little")
    for offset, length in ranges:
        cells[offset // CELL_BYTES : -(-(offset + length) // CELL_BYTES)] = 1
    return cells


def ranges_of(cells: bitarray, size_bytes: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the cells that are set, neighbours together."""
    for _, first, end in _set_intervals(cells):
        start = first * CELL_BYTES
        yield start, min(end * CELL_BYTES, size_bytes) - start


def free_ranges(extents: Iterable[Extent], size_bytes: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of everything that is in no extent."""
    end = 0
    for extent in extents:
        if extent.offset > end:
            yield end, extent.offset - end
        end = extent.end
    if end < size_bytes:
        yield end, size_bytes - end


def free_blocks_in(used: bitarray, block_bytes: int, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the free blocks, or parts of them, of a range, in bytes from `offset`."""
    return _blocks_in(used, block_bytes, offset, length, 0)


def used_blocks_in(used: bitarray, block_bytes: int, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """The same of the used ones."""
    return _blocks_in(used, block_bytes, offset, length, 1)


def _blocks_in(used: bitarray, block_bytes: int, offset: int, length: int, wanted: int) -> Iterator[tuple[int, int]]:
    first, last = offset // block_bytes, -(-(offset + length) // block_bytes)
    skip = offset - first * block_bytes
    if used.count(wanted, first, last) == 0:
        return
    for value, start, stop in intervals(used[first:last]):
        if value == wanted:
            yield max(start * block_bytes - skip, 0), min(stop * block_bytes - skip, length)


def clear_free(view: memoryview, offset: int, used: bitarray, block_bytes: int) -> None:
    """Make the free blocks in `view`, which is at `offset` of the image, zeros."""
    for start, stop in free_blocks_in(used, block_bytes, offset, len(view)):
        for at in range(start, stop, len(_ZERO_BYTES)):
            end = min(at + len(_ZERO_BYTES), stop)
            view[at:end] = _ZERO_BYTES[: end - at]


def used_bytes(used: bitarray, block_bytes: int, size_bytes: int) -> int:
    """Bytes of the image in used blocks."""
    past_the_end = len(used) * block_bytes - size_bytes
    return used.count() * block_bytes - (past_the_end if used[-1] else 0)


def extents_of(cells: bitarray, size_bytes: int, *, is_zeros: bool = False) -> Iterator[Extent]:
    """The extents of the cells that are set."""
    for _, first, end in _set_intervals(cells):
        start, stop = first * CELL_BYTES, min(end * CELL_BYTES, size_bytes)
        if is_zeros:
            yield Extent(start, stop - start, is_zeros=True)
            continue
        while start < stop:
            border = min((start // EXTENT_BYTES + 1) * EXTENT_BYTES, stop)
            yield Extent(start, border - start)
            start = border


def _set_intervals(bits: bitarray) -> Iterator[tuple[int, int, int]]:
    return (interval for interval in intervals(bits) if interval[0])
