"""What the inodes of an ext filesystem claim, compared with its block bitmaps.

A bitmap without checksum that lost one bit and gained another has the right number of free blocks and is wrong all
the same; bitmaps with checksums may be those of yesterday, when the last write of them was lost. So every block that
an inode in use names must be in use by the bitmap: data (direct, through blocks of pointers, by extents), the blocks
of pointers and of the extent trees themselves, and blocks of extended attributes. Journal, quota, resize inode and
orphan file are inodes like others. One claimed block that is free: nothing is believed.

Bounded: pieces of some MiB at a time, whatever the image says; a block of pointers is read once (a second way to it
is refused, so nothing goes round in circles); pointers outside the filesystem, trees of senseless depth and extents
that are more than the filesystem in sum are refused.
The reverse, blocks in use that nobody claims, costs space only and is let be.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from bitarray import bitarray
from numpy.typing import NDArray

from snapfs.usedmap import ext_layout as layout
from snapfs.usedmap.ext_geometry import Geometry
from snapfs.usedmap.ext_groups import Groups, Numbers, runs_of
from snapfs.usedmap.ext_inodes import Inodes, inodes_in_use
from snapfs.usedmap.result import MapError
from snapfs.usedmap.source import Source

# Blocks of pointers that are read together. A level of pointers below them is at most this many bytes, twice.
_PIECE_BYTES = 1 << 20


def check_claims(
    source: Source, geometry: Geometry, groups: Groups, used: bitarray, *, without: bytes | None = None
) -> None:
    """`MapError` unless `used` (one bit per cluster) covers what the inodes of the filesystem claim; `without`: the
    `map` of the one inode whose blocks do not count."""
    with memoryview(used) as view:
        claims = _Claims(source, geometry, np.frombuffer(view, np.uint8), without)
        try:
            for inodes in inodes_in_use(source, geometry, groups):
                claims.check(inodes)
            if without is not None and claims.left_out != 1:
                raise MapError("has files that claim the same blocks")
        finally:
            claims.close()


class _Claims:
    def __init__(
        self, source: Source, geometry: Geometry, used: NDArray[np.uint8], without: bytes | None = None
    ) -> None:
        self._without = without
        self.left_out = 0
        self._source = source
        self._geometry = geometry
        self._used: NDArray[np.uint8] | None = used
        # One bit per block; the kernel gives memory only to the parts that are written.
        self._read_before = np.zeros(geometry.blocks_count // 8 + 1, np.uint8)
        self._extent_blocks = 0

    def close(self) -> None:
        """Let go of the bitmap, which cannot be resized before."""
        self._used = None

    def check(self, inodes: Inodes) -> None:
        self._check_used(_pointers(self._attribute_blocks(inodes)))
        if self._geometry.creator_os == layout.CREATOR_HURD:
            self._check_used(_pointers(inodes["translator"]))
        inodes = inodes[self._has_blocks(inodes)]
        if self._without is not None:
            is_it = (_as_table(inodes["map"], np.dtype(np.uint8)) == np.frombuffer(self._without, np.uint8)).all(
                axis=1
            )
            self.left_out += int(np.count_nonzero(is_it))
            inodes = inodes[~is_it]
        has_extents = inodes["flags"] & layout.INODE_FLAG_EXTENTS != 0
        self._check_maps(inodes[~has_extents])
        self._check_extents(inodes[has_extents])

    def _attribute_blocks(self, inodes: Inodes) -> Numbers:
        """The block of extended attributes of each inode, 0 without one."""
        blocks = inodes["attributes_lo"].astype(np.int64)
        if self._geometry.incompat & layout.INCOMPAT_64BIT:
            blocks |= inodes["attributes_hi"].astype(np.int64) << 32
        return blocks

    def _has_blocks(self, inodes: Inodes) -> NDArray[np.bool_]:
        """Whether the map of an inode names blocks; in the others it is a device number, a short link or content."""
        kind = inodes["mode"] & layout.FORMAT_MASK
        # A symbolic link is in its inode when it has no blocks but that of its attributes.
        sectors = inodes["sectors_lo"].astype(np.int64) | inodes["sectors_hi"].astype(np.int64) << 32
        cluster_sectors = self._geometry.cluster_blocks * self._geometry.block_bytes // layout.SECTOR_BYTES
        own_sectors = sectors - np.where(self._attribute_blocks(inodes) != 0, cluster_sectors, 0)
        is_short_link = (kind == layout.FORMAT_SYMLINK) & (own_sectors == 0)
        is_inline = inodes["flags"] & layout.INODE_FLAG_INLINE_DATA != 0
        without = is_short_link | is_inline | np.isin(kind, layout.FORMATS_WITHOUT_BLOCKS)
        claiming: NDArray[np.bool_] = ~without
        return claiming

    # --- block maps ----------------------------------------------------------------------------------

    def _check_maps(self, inodes: Inodes) -> None:
        maps = _as_table(inodes["map"], layout.POINTER)
        self._check_used(_pointers(maps[:, : layout.DIRECT_POINTERS]))
        for level in range(1, layout.INDIRECT_LEVELS + 1):
            self._check_indirect(_pointers(maps[:, layout.DIRECT_POINTERS + level - 1]), level)

    def _check_indirect(self, blocks: Numbers, level: int) -> None:
        """Blocks of pointers; those of level 1 point to data."""
        for raw in self._read_once(blocks):
            pointers = _pointers(raw.view(layout.POINTER))
            if level == 1:
                self._check_used(pointers)
            else:
                self._check_indirect(pointers, level - 1)

    # --- extent trees --------------------------------------------------------------------------------

    def _check_extents(self, inodes: Inodes) -> None:
        nodes = _as_table(inodes["map"], np.dtype(np.uint8))
        self._check_nodes(nodes, _headers(nodes)["depth"].astype(np.int64))

    def _check_nodes(self, nodes: NDArray[np.uint8], depths: Numbers) -> None:
        """Nodes of one size, each with the depth that it must have."""
        headers = _headers(nodes)
        capacity = (nodes.shape[1] - layout.EXTENT_HEADER.itemsize) // layout.EXTENT.itemsize
        if (headers["magic"] != layout.EXTENT_MAGIC).any() or (headers["entries"] > capacity).any():
            raise MapError("has a broken extent tree")
        if (headers["depth"] != depths).any() or (depths > layout.EXTENT_MAX_DEPTH).any():
            raise MapError("has an extent tree of a senseless depth")
        entries = nodes[:, layout.EXTENT_HEADER.itemsize :][:, : capacity * layout.EXTENT.itemsize]
        counts = headers["entries"].astype(np.int64)
        self._check_leaves(*_filled(entries, layout.EXTENT, counts * (depths == 0)))
        self._check_children(*_filled(entries, layout.EXTENT_INDEX, counts * (depths != 0)), depths)

    def _check_leaves(self, extents: NDArray[np.void], _: Numbers) -> None:
        starts = extents["start_lo"].astype(np.int64) | extents["start_hi"].astype(np.int64) << 32
        counts = extents["count"].astype(np.int64)
        counts = np.where(counts > layout.EXTENT_MAX_INITIALISED, counts - layout.EXTENT_MAX_INITIALISED, counts)
        if (counts == 0).any():
            raise MapError("has an extent without blocks")
        self._check_inside(starts)
        self._check_inside(starts + counts - 1)
        self._extent_blocks += int(counts.sum())
        if self._extent_blocks > self._geometry.blocks_count:
            raise MapError("has files that claim more blocks than it has")
        for blocks in _expanded(starts, counts):
            self._check_used(blocks)

    def _check_children(self, index: NDArray[np.void], rows: Numbers, depths: Numbers) -> None:
        blocks = index["child_lo"].astype(np.int64) | index["child_hi"].astype(np.int64) << 32
        below = depths[rows] - 1
        for depth in np.unique(below).tolist():
            for nodes in self._read_once(blocks[below == depth]):
                self._check_nodes(nodes, np.full(len(nodes), depth, np.int64))

    # --- both ----------------------------------------------------------------------------------------

    def _read_once(self, blocks: Numbers) -> Iterator[NDArray[np.uint8]]:
        """The content of blocks that hold pointers, as rows, some at a time, each claimed and never read before."""
        self._check_used(blocks)
        blocks = np.sort(blocks)
        if (blocks[1:] == blocks[:-1]).any() or (self._read_before[blocks >> 3] >> (blocks & 7) & 1).any():
            raise MapError("has two ways to one block of pointers")
        np.bitwise_or.at(self._read_before, blocks >> 3, np.left_shift(1, blocks & 7).astype(np.uint8))
        step = max(_PIECE_BYTES // self._geometry.block_bytes, 1)
        for first in range(0, len(blocks), step):
            yield self._read_blocks(blocks[first : first + step])

    def _read_blocks(self, blocks: Numbers) -> NDArray[np.uint8]:
        block_bytes = self._geometry.block_bytes
        content = bytearray(len(blocks) * block_bytes)
        with memoryview(content) as view:
            for first, last in runs_of(blocks):
                target = view[first * block_bytes : (last + 1) * block_bytes]
                self._source.readinto(int(blocks[first]) * block_bytes, target)
        return np.frombuffer(content, np.uint8).reshape(len(blocks), block_bytes)

    def _check_inside(self, blocks: Numbers) -> None:
        first, end = self._geometry.first_data_block, self._geometry.blocks_count
        if len(blocks) and (blocks.min() <= first or blocks.max() >= end):
            raise MapError("has a file that points outside it")

    def _check_used(self, blocks: Numbers) -> None:
        assert self._used is not None
        self._check_inside(blocks)
        clusters = (blocks - self._geometry.first_data_block) // self._geometry.cluster_blocks
        is_used = self._used[clusters >> 3] >> (clusters & 7).astype(np.uint8) & 1
        if not is_used.all():
            block = int(blocks[np.flatnonzero(is_used == 0)[0]])
            raise MapError(f"has files that use blocks which its bitmaps call free (block {block})")


def _as_table(column: NDArray[np.void], kind: np.dtype[Any]) -> NDArray[Any]:
    """A column of raw bytes as rows of `kind`."""
    raw = np.ascontiguousarray(column)
    return raw.view(np.uint8).reshape(len(raw), column.dtype.itemsize).view(kind)


def _pointers(numbers: NDArray[Any]) -> Numbers:
    """Block numbers that are there; 0 is a hole."""
    pointers: Numbers = numbers[numbers != 0].astype(np.int64)
    return pointers


def _headers(nodes: NDArray[np.uint8]) -> NDArray[np.void]:
    raw = np.ascontiguousarray(nodes[:, : layout.EXTENT_HEADER.itemsize])
    return raw.view(layout.EXTENT_HEADER).reshape(-1)


def _filled(entries: NDArray[np.uint8], kind: np.dtype[np.void], counts: Numbers) -> tuple[NDArray[np.void], Numbers]:
    """The first `counts[row]` entries of each row, one after the other, and the row of each."""
    table = np.ascontiguousarray(entries).view(kind)
    is_filled = np.arange(table.shape[1]) < counts[:, None]
    return table[is_filled], np.nonzero(is_filled)[0]


def _expanded(starts: Numbers, counts: Numbers) -> Iterator[Numbers]:
    """Every block of the extents, about a million at a time."""
    ends = np.cumsum(counts)
    first = 0
    while first < len(starts):
        done = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, done + _PIECE_BYTES, side="right")), first + 1)
        sizes = counts[first:last]
        offsets = np.arange(int(sizes.sum())) - np.repeat(ends[first:last] - sizes - done, sizes)
        yield np.repeat(starts[first:last], sizes) + offsets
        first = last
