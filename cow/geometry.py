"""Offsets, blocks and runs: the only place that divides a byte offset by a block size.

A half-open range of blocks is written `first, end`; a range of bytes `offset, length`.
The last block may be shorter than the others when the image is no multiple of the block.
"""

from __future__ import annotations

from dataclasses import dataclass

from cow.errors import OutOfRange

MIN_BLOCK_BYTES = 512
MAX_BLOCK_BYTES = 1 << 20
# Bitmaps and the index are mapped whole; 16 TiB is what was measured to stay within memory and time.
MAX_IMAGE_BYTES = 16 << 40
# In such regions it is noted durably where the image was written to: no block is larger, and a bit for each is little
# to flush.
REGION_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Geometry:
    """An image of `image_bytes` cut into blocks of `block_bytes` (a power of two)."""

    image_bytes: int
    block_bytes: int

    def __post_init__(self) -> None:
        size = self.block_bytes
        if size & (size - 1) or not MIN_BLOCK_BYTES <= size <= MAX_BLOCK_BYTES:
            raise ValueError(f"block size {size} is not a power of two from 512 to 1048576")
        if not 0 < self.image_bytes <= MAX_IMAGE_BYTES:
            raise ValueError(f"an image of {self.image_bytes} bytes is not between 1 byte and 16 TiB")

    @property
    def block_count(self) -> int:
        return -(-self.image_bytes // self.block_bytes)

    @property
    def region_count(self) -> int:
        return -(-self.image_bytes // REGION_BYTES)

    def regions(self, first: int, end: int) -> tuple[int, int]:
        """The regions `first, end` that have some of the blocks."""
        size = REGION_BYTES // self.block_bytes
        return first // size, (end - 1) // size + 1

    def blocks_of(self, first: int, end: int) -> tuple[int, int]:
        """The blocks `first, end` of these regions."""
        size = REGION_BYTES // self.block_bytes
        return first * size, min(end * size, self.block_count)

    def span(self, offset: int, length: int) -> tuple[int, int]:
        """The blocks `first, end` touched by `length` > 0 bytes at `offset`."""
        if offset < 0 or length <= 0 or offset + length > self.image_bytes:
            raise OutOfRange(offset, length, self.image_bytes)
        size = self.block_bytes
        return offset // size, (offset + length - 1) // size + 1

    def inner_span(self, offset: int, length: int) -> tuple[int, int]:
        """The blocks wholly inside the byte range; `first >= end` when there is none."""
        if offset < 0 or length < 0 or offset + length > self.image_bytes:
            raise OutOfRange(offset, length, self.image_bytes)
        size = self.block_bytes
        stop = offset + length
        return -(-offset // size), self.block_count if stop == self.image_bytes else stop // size

    def extent(self, first: int, end: int) -> tuple[int, int]:
        """The bytes `offset, length` of blocks `first, end`, clipped at the end of the image."""
        offset = first * self.block_bytes
        return offset, min(end * self.block_bytes, self.image_bytes) - offset

    def clip(self, offset: int, length: int) -> int:
        """How many of `length` bytes at `offset` the image has; 0 at or past its end."""
        return max(0, min(length, self.image_bytes - offset))

    def pieces(self, offset: int, length: int, max_blocks: int) -> list[tuple[int, int]]:
        """Cut a byte range at block borders into parts that touch at most `max_blocks` blocks each."""
        step = max_blocks * self.block_bytes
        stop = offset + length
        parts = []
        while offset < stop:
            until = min(stop, (offset // step + 1) * step)
            parts.append((offset, until - offset))
            offset = until
        return parts

    def overlap(self, first: int, end: int, offset: int, length: int) -> tuple[int, int, int]:
        """What bytes of `offset, length` the blocks hold: `(skip in the blocks, skip in the range, count)`."""
        start, size = self.extent(first, end)
        low = max(start, offset)
        high = min(start + size, offset + length)
        return low - start, low - offset, max(0, high - low)
