"""Swap files in the root directory of an ext4. Rules: see `swap_files`.

1. A regular file of one of the usual names, with no other name, whose blocks stand in extents, without holes, and
   whose first page is that of swap space (`swap`); that page stays, so that the file is swap space again when it is
   restored.
2. The map has proven that what files claim is used, not that two of them do not claim the same. So all inodes but
   this one are looked at again, with its blocks called free: whoever claims one of them is found. Nor may they be
   fixed metadata, or blocks of its own tree.

Layout and its sources: `ext_layout`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np
from bitarray import bitarray
from bitarray.util import zeros

from snapfs.usedmap import ext_layout as layout
from snapfs.usedmap.ext import mark_fixed_metadata
from snapfs.usedmap.ext_claims import check_claims
from snapfs.usedmap.ext_geometry import Geometry, read_geometry
from snapfs.usedmap.ext_groups import Groups, read_groups
from snapfs.usedmap.result import FreeMap, MapError
from snapfs.usedmap.source import Source
from snapfs.usedmap.swap import PAGE_BYTES, find_page_bytes, last_page
from snapfs.usedmap.swap_files import SwapFile

_NAMES: Final = (b"swapfile", b"swap.img")
_ROOT_NO: Final = 2
# A root directory of some ten thousand names.
_DIRECTORY_BYTES_MAX: Final = 4 << 20
# Extents and blocks of their tree: more than any swap file has that a system accepts. A tree in which many nodes
# lead to one would take any time.
_EXTENTS_MAX: Final = 1 << 16
# inode, length of the entry, length of the name; then the kind, and the name.
_ENTRY: Final = struct.Struct("<IHB")
_NAME_OFFSET: Final = 8


class _Extent(NamedTuple):
    logical: int
    start: int
    blocks: int


def find(source: Source, free_map: FreeMap) -> list[SwapFile]:
    geometry = read_geometry(source)
    if geometry.cluster_blocks != 1:
        return []
    volume = _Volume(source, geometry, read_groups(source, geometry))
    used = ~free_map.free
    return [file for name in _NAMES if (file := _found(volume, name, used)) is not None]


def _found(volume: _Volume, name: bytes, used: bitarray) -> SwapFile | None:
    """The file of that name, if it is one."""
    try:
        number = volume.number_of(name)
        inode = None if number is None else volume.inode(number)
        if inode is None or inode["mode"] & layout.FORMAT_MASK != layout.FORMAT_REGULAR or inode["links"] != 1:
            return None
        extents, tree = volume.extents_of(inode)
        base = volume.geometry.first_data_block
        ranges = [(first - base, end - base) for first, end in _pages(volume, inode, extents)]
        volume.check_nobody_elses(ranges, [block - base for block in tree], inode, used)
    except MapError:
        return None
    return SwapFile(f"/{name.decode()}", ranges)


def _pages(volume: _Volume, inode: np.void, extents: list[_Extent]) -> list[tuple[int, int]]:
    """(first, end) of the blocks that hold pages of swap space behind the first one."""
    block_bytes = volume.geometry.block_bytes
    size_bytes = int(inode["size_lo"]) | int(inode["size_hi"]) << 32
    head_bytes = min(PAGE_BYTES[-1], size_bytes // block_bytes * block_bytes)
    head = Source(_Content(volume.read_logical(extents, head_bytes // block_bytes)), head_bytes)
    page_bytes = find_page_bytes(head)
    end_bytes = (last_page(head) + 1) * page_bytes
    if end_bytes > size_bytes:
        raise MapError("has a swap file that is larger than its file")
    first, end = -(-page_bytes // block_bytes), end_bytes // block_bytes
    found, at = [], first
    for extent in extents:
        start, stop = max(extent.logical, at), min(extent.logical + extent.blocks, end)
        if start < stop:
            if start != at:
                break
            found.append((extent.start + start - extent.logical, extent.start + stop - extent.logical))
            at = stop
    if at != end:
        # No system swaps to such a file, so it is something else to somebody.
        raise MapError("has a swap file with a hole")
    return found


class _Volume:
    def __init__(self, source: Source, geometry: Geometry, groups: Groups) -> None:
        self._source, self.geometry, self._groups = source, geometry, groups

    def inode(self, number: int) -> np.void:
        geometry = self.geometry
        if not 0 < number <= geometry.group_count * geometry.inodes_per_group:
            raise MapError("has a name for an inode that is none")
        group, index = divmod(number - 1, geometry.inodes_per_group)
        offset = int(self._groups.inode_table[group]) * geometry.block_bytes + index * geometry.inode_bytes
        raw = self._source.read(offset, geometry.inode_bytes)
        row: np.void = np.frombuffer(raw, layout.inode_dtype(geometry.inode_bytes), 1)[0]
        return row

    def number_of(self, name: bytes) -> int | None:
        """The inode of a name in the root directory."""
        root = self.inode(_ROOT_NO)
        extents, _ = self.extents_of(root)
        count = max((extent.logical + extent.blocks for extent in extents), default=0)
        if count * self.geometry.block_bytes > _DIRECTORY_BYTES_MAX:
            raise MapError("has too large a root directory to look for swap files in it")
        content, block_bytes = self.read_logical(extents, count), self.geometry.block_bytes
        found = {
            number
            for at in range(0, len(content), block_bytes)
            for number, entry in _entries(content[at : at + block_bytes])
            if entry == name and number
        }
        if len(found) > 1:
            raise MapError("has a name twice in its root directory")
        return found.pop() if found else None

    def extents_of(self, inode: np.void) -> tuple[list[_Extent], list[int]]:
        """The extents of a file in their order, and the blocks of its tree."""
        flags = int(inode["flags"])
        if not flags & layout.INODE_FLAG_EXTENTS or flags & layout.INODE_FLAG_INLINE_DATA:
            raise MapError("keeps a file in a form that is not supported")
        extents: list[_Extent] = []
        tree: list[int] = []
        self._walk(bytes(inode["map"].tobytes()), extents, tree, layout.EXTENT_MAX_DEPTH + 1)
        return extents, tree

    def read_logical(self, extents: list[_Extent], count: int) -> bytes:
        """The first `count` blocks of a file; holes are refused."""
        block_bytes = self.geometry.block_bytes
        places = {}
        for extent in extents:
            for index in range(min(extent.blocks, max(count - extent.logical, 0))):
                places[extent.logical + index] = extent.start + index
        if sorted(places) != list(range(count)):
            raise MapError("has a file with a hole where none can be")
        return b"".join(self._source.read(places[index] * block_bytes, block_bytes) for index in range(count))

    def check_nobody_elses(
        self, ranges: list[tuple[int, int]], tree: list[int], inode: np.void, used: bitarray
    ) -> None:
        """`MapError` unless the blocks in `ranges` are claimed by that inode alone, and once."""
        fixed = zeros(len(used), "little")
        mark_fixed_metadata(self.geometry, self._groups, fixed)
        for block in tree:
            fixed[block] = 1
        others = used.copy()
        for first, end in ranges:
            if fixed.find(1, first, end) >= 0 or others.find(0, first, end) >= 0:
                raise MapError("has a swap file in blocks that hold something else")
            others[first:end] = 0
        check_claims(self._source, self.geometry, self._groups, others, without=bytes(inode["map"].tobytes()))

    def _walk(self, node: bytes, extents: list[_Extent], tree: list[int], depth_below: int) -> None:
        header = np.frombuffer(node, layout.EXTENT_HEADER, 1)[0]
        count, depth = int(header["entries"]), int(header["depth"])
        at, size = layout.EXTENT_HEADER.itemsize, layout.EXTENT.itemsize
        if header["magic"] != layout.EXTENT_MAGIC or depth >= depth_below or at + count * size > len(node):
            raise MapError("has a broken extent tree")
        if len(extents) + len(tree) + count > _EXTENTS_MAX:
            raise MapError("has a file in too many pieces")
        rows: Any = np.frombuffer(node, layout.EXTENT if depth == 0 else layout.EXTENT_INDEX, count, at)
        for row in rows:
            if depth == 0:
                blocks = int(row["count"])
                blocks -= layout.EXTENT_MAX_INITIALISED if blocks > layout.EXTENT_MAX_INITIALISED else 0
                start = int(row["start_lo"]) | int(row["start_hi"]) << 32
                extents.append(_Extent(int(row["logical"]), start, blocks))
            else:
                block = int(row["child_lo"]) | int(row["child_hi"]) << 32
                tree.append(block)
                block_bytes = self.geometry.block_bytes
                self._walk(self._source.read(block * block_bytes, block_bytes), extents, tree, depth)


class _Content:
    """The beginning of a file, for those who read what a source is."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def preadv_into(self, buffer: memoryview, offset: int) -> int:
        part = self._content[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        return len(part)


def _entries(block: bytes) -> Iterator[tuple[int, bytes]]:
    """(inode, name) of the entries of one block of a directory; those of a hashed one are among them."""
    at = 0
    while at + _NAME_OFFSET <= len(block):
        number, length, name_length = _ENTRY.unpack_from(block, at)
        if length < _NAME_OFFSET or length % 4 or at + length > len(block):
            raise MapError("has a broken root directory")
        yield number, block[at + _NAME_OFFSET : at + _NAME_OFFSET + name_length]
        at += length
