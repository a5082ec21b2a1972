"""Inodes in use, read from the inode tables of an ext filesystem a piece at a time.

Rules
1. In use is what the inode bitmap of a group says; it must have exactly as many free inodes as the descriptor.
2. Of each table the part up to its last inode in use is read, and some more, where new files would be if the
   bitmap were an old one. Whole tables are a sixtieth of the disk.
3. An inode in that part that has names (links) although the bitmap calls it free is a contradiction.
4. Inodes in use without names are those of deleted files that are still open, the list of bad blocks, and
   reserved ones: they count like the others.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from snapfs.usedmap import ext_layout as layout
from snapfs.usedmap.ext_geometry import Geometry
from snapfs.usedmap.ext_groups import Groups
from snapfs.usedmap.result import MapError
from snapfs.usedmap.source import Source

# Inodes that are looked at together: their tables, and the arrays made from them, take some MiB.
_PIECE_BYTES = 4 << 20
# What is read behind the last inode in use: more than one write of a disk's cache or of the kernel usually holds.
_MARGIN_BYTES = 64 << 10

Inodes = NDArray[np.void]


def inodes_in_use(source: Source, geometry: Geometry, groups: Groups) -> Iterator[Inodes]:
    """All inodes in use, as rows of `ext_layout.inode_dtype`, some thousands at a time."""
    waiting: list[Inodes] = []
    waiting_bytes = 0
    for group in np.flatnonzero(~groups.has_no_inodes).tolist():
        in_use = _read_bitmap(source, geometry, groups, group)
        for piece in _read_table(source, geometry, groups, group, in_use):
            waiting.append(piece)
            waiting_bytes += piece.nbytes
            if waiting_bytes >= _PIECE_BYTES:
                yield np.concatenate(waiting)
                waiting, waiting_bytes = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _read_bitmap(source: Source, geometry: Geometry, groups: Groups, group: int) -> NDArray[np.bool_]:
    """Which inodes of the group are in use."""
    count = geometry.inodes_per_group
    offset = int(groups.inode_bitmap[group]) * geometry.block_bytes
    raw = np.frombuffer(source.read(offset, -(-count // 8)), np.uint8)
    in_use = np.unpackbits(raw, bitorder="little")[:count].view(np.bool_)
    if count - np.count_nonzero(in_use) != groups.free_inodes[group]:
        raise MapError(f"has a number of free inodes in group {group} that its bitmap contradicts")
    if in_use[count - min(int(groups.unused_inodes[group]), count) :].any():
        raise MapError(f"has inodes in use in group {group} where its table was never written")
    return in_use


def _read_table(
    source: Source, geometry: Geometry, groups: Groups, group: int, in_use: NDArray[np.bool_]
) -> Iterator[Inodes]:
    dtype = layout.inode_dtype(geometry.inode_bytes)
    offset = int(groups.inode_table[group]) * geometry.block_bytes
    end = _table_end(geometry, groups, group, in_use)
    step = max(_PIECE_BYTES // geometry.inode_bytes, 1)
    for first in range(0, end, step):
        count = min(step, end - first)
        raw = source.read(offset + first * geometry.inode_bytes, count * geometry.inode_bytes)
        rows = np.frombuffer(raw, dtype, count)
        taken = in_use[first : first + count]
        if (rows["links"][~taken] != 0).any():
            raise MapError(f"has a file in group {group} in an inode that its bitmap calls free")
        yield rows[taken]


def _table_end(geometry: Geometry, groups: Groups, group: int, in_use: NDArray[np.bool_]) -> int:
    """How many inodes of the table of a group are looked at."""
    positions = np.flatnonzero(in_use)
    last = int(positions[-1]) + 1 if len(positions) else 0
    margin = _MARGIN_BYTES if last else geometry.block_bytes
    written = len(in_use) if groups.has_clean_table[group] else len(in_use) - int(groups.unused_inodes[group])
    return max(last, min(last + margin // geometry.inode_bytes, written))
