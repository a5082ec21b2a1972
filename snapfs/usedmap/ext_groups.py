"""The descriptors of all groups of an ext filesystem: read, and checked as far as they can be on their own.

After `read_groups` the checksums of the descriptors (where there are any) are right, all fixed metadata lie inside
the filesystem, and no two groups share a bitmap.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from snapfs.usedmap import ext_layout as layout
from snapfs.usedmap.checksums import crc16_of_rows, crc32c_raw
from snapfs.usedmap.ext_geometry import Geometry
from snapfs.usedmap.result import MapError
from snapfs.usedmap.source import Source

Numbers = NDArray[np.int64]


class Groups:
    """The descriptors of all groups as columns."""

    def __init__(self, geometry: Geometry, table: bytes) -> None:
        rows = np.frombuffer(table, layout.descriptor_dtype(geometry.desc_size), geometry.group_count)
        self.bytes = np.frombuffer(table, np.uint8, geometry.group_count * geometry.desc_size)
        self.bytes = self.bytes.reshape(geometry.group_count, geometry.desc_size)
        self.block_bitmap = _joined(rows, "block_bitmap", 32)
        self.inode_bitmap = _joined(rows, "inode_bitmap", 32)
        self.inode_table = _joined(rows, "inode_table", 32)
        self.free = _joined(rows, "free", 16)
        self.free_inodes = _joined(rows, "free_inodes", 16)
        self.bitmap_checksum = _joined(rows, "bitmap_checksum", 16)
        self.checksum = rows["checksum"].astype(np.int64)
        has_uninit = geometry.has_uninit_groups
        self.is_uninit = (rows["flags"] & layout.FLAG_BLOCK_UNINIT != 0) & has_uninit
        self.has_no_inodes = (rows["flags"] & layout.FLAG_INODE_UNINIT != 0) & has_uninit
        # Behind the inodes in use there are zeros; elsewhere, whatever was there before.
        self.has_clean_table = (rows["flags"] & layout.FLAG_INODES_ZEROED != 0) | (not has_uninit)
        self.unused_inodes = _joined(rows, "inodes_unused", 16) * has_uninit


def read_groups(source: Source, geometry: Geometry) -> Groups:
    block_bytes = geometry.block_bytes
    places = geometry.gdt_block_places()
    if max(places) >= geometry.blocks_count:
        raise MapError("has group descriptors beyond its end")
    table = bytearray(len(places) * block_bytes)
    with memoryview(table) as view:
        for first, last in runs_of(np.array(places, np.int64)):
            source.readinto(places[first] * block_bytes, view[first * block_bytes : (last + 1) * block_bytes])
    groups = Groups(geometry, bytes(table))
    _check_descriptor_checksums(geometry, groups)
    _check_places(geometry, groups)
    return groups


def _check_descriptor_checksums(geometry: Geometry, groups: Groups) -> None:
    at = layout.DESCRIPTOR_CHECKSUM_OFFSET
    if geometry.has_metadata_csum:
        zeroed = groups.bytes.copy()
        zeroed[:, at : at + 2] = 0
        numbers = np.arange(geometry.group_count, dtype="<u4").view(np.uint8).reshape(-1, 4)
        rows = np.concatenate((numbers, zeroed), axis=1)
        actual = np.array([crc32c_raw(geometry.seed, row.tobytes()) & 0xFFFF for row in rows])
    elif geometry.has_gdt_csum:
        numbers = np.arange(geometry.group_count, dtype="<u4").view(np.uint8).reshape(-1, 4)
        uuid = np.broadcast_to(np.frombuffer(geometry.uuid, np.uint8), (geometry.group_count, 16))
        parts = (uuid, numbers, groups.bytes[:, :at], groups.bytes[:, at + 2 :])
        actual = crc16_of_rows(np.concatenate(parts, axis=1))
    else:
        return
    wrong = np.flatnonzero(actual != groups.checksum)
    if len(wrong):
        raise MapError(f"has a wrong checksum in the descriptor of group {wrong[0]}")


def _check_places(geometry: Geometry, groups: Groups) -> None:
    for places, count in (
        (groups.block_bitmap, 1),
        (groups.inode_bitmap, 1),
        (groups.inode_table, geometry.inode_table_blocks),
    ):
        if places.min() <= geometry.first_data_block or places.max() + count > geometry.blocks_count:
            raise MapError("has metadata of a group outside itself")
    if len(np.unique(groups.block_bitmap)) != geometry.group_count:
        raise MapError("has two groups with one bitmap")


def _joined(rows: NDArray[np.void], name: str, low_bits: int) -> Numbers:
    """A number kept in a low half and, in large descriptors, a high half."""
    low = rows[f"{name}_lo"].astype(np.int64)
    high = f"{name}_hi"
    if high not in (rows.dtype.names or ()):
        return low
    return low | (rows[high].astype(np.int64) << low_bits)


def runs_of(places: Numbers) -> list[tuple[int, int]]:
    """First and last index of each run of consecutive places."""
    breaks = np.flatnonzero(np.diff(places) != 1)
    firsts = [0, *(breaks + 1).tolist()]
    return list(zip(firsts, [*breaks.tolist(), len(places) - 1], strict=True))
