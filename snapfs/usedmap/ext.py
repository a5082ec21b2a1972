"""The map of ext2, ext3 and ext4, from their block bitmaps.

Trusted only when all of this holds:
1. no journal recovery is needed, the state is exactly "valid" (or, for a filesystem without a journal that was
   frozen for this very cut, "mounted"), and every feature is known;
2. every checksum that the filesystem has is right: superblock, group descriptors, bitmaps;
3. all fixed metadata lie inside the filesystem, no two groups share a bitmap, and
   each group has exactly as many free clusters as its descriptor says, and all together as many as the superblock;
4. every block that an inode claims is in use by the bitmaps (see `ext_claims`).

A bitmap that was never written (BLOCK_UNINIT) stands for "nothing but fixed metadata used". Fixed metadata of all
groups are marked in any case: where the bitmaps are right that changes nothing.
Deleted files that are still open (orphans) stay marked in the bitmaps: more than is needed, never less.
"""

from __future__ import annotations

import numpy as np
from bitarray import bitarray
from bitarray.util import ones

from snapfs.usedmap import ext_layout as layout
from snapfs.usedmap.checksums import crc32c_raw
from snapfs.usedmap.ext_claims import check_claims
from snapfs.usedmap.ext_geometry import Geometry, read_geometry
from snapfs.usedmap.ext_groups import Groups, read_groups, runs_of
from snapfs.usedmap.result import FreeMap, MapError
from snapfs.usedmap.source import Source

# Bitmaps that cannot be read in place (groups smaller than a bitmap block) go through a buffer of this size.
_BUFFER_BYTES = 4 << 20


def read_free_map(source: Source, *, frozen_by_us: bool = False) -> FreeMap:
    """The free clusters (blocks, without bigalloc); `MapError` when they cannot be trusted."""
    geometry = read_geometry(source)
    _check_clean(geometry, frozen_by_us)
    groups = read_groups(source, geometry)
    used = _read_bitmaps(source, geometry, groups)
    _check_bitmap_checksums(geometry, groups, used)
    mark_fixed_metadata(geometry, groups, used)
    _check_free_counts(geometry, groups, used)
    check_claims(source, geometry, groups, used)
    del used[geometry.cluster_count :]
    used.invert()
    start = geometry.first_data_block * geometry.block_bytes
    # The last cluster may reach beyond the last block; it is free only as far as the filesystem goes.
    if (geometry.blocks_count - geometry.first_data_block) % geometry.cluster_blocks:
        used[-1] = 0
    return FreeMap(geometry.cluster_blocks * geometry.block_bytes, start, used)


def _check_clean(geometry: Geometry, frozen_by_us: bool) -> None:
    if geometry.state == layout.STATE_VALID:
        return
    if geometry.state & ~layout.STATE_VALID:
        raise MapError("is marked as having errors")
    if geometry.has_journal or not frozen_by_us:
        raise MapError("is not marked clean: it is mounted, or was not unmounted")


def _read_bitmaps(source: Source, geometry: Geometry, groups: Groups) -> bitarray:
    """All bitmaps one after the other; those of groups that were never written read zero."""
    group_bytes = geometry.clusters_per_group // 8
    used = ones(geometry.group_count * geometry.clusters_per_group, "little")
    runs = runs_of(groups.block_bitmap)
    # They are scattered over the whole disk, which would seek for one after the other.
    for first, last in runs:
        offset = int(groups.block_bitmap[first]) * geometry.block_bytes
        source.will_read(offset, (last + 1 - first) * geometry.block_bytes)
    with memoryview(used) as view:
        for first, last in runs:
            offset = int(groups.block_bitmap[first]) * geometry.block_bytes
            target = view[first * group_bytes : (last + 1) * group_bytes]
            if group_bytes == geometry.block_bytes:
                source.readinto(offset, target)
            else:
                _read_short_bitmaps(source, offset, geometry, target)
    for group in np.flatnonzero(groups.is_uninit).tolist():
        used[group * geometry.clusters_per_group : (group + 1) * geometry.clusters_per_group] = 0
    return used


def _read_short_bitmaps(source: Source, offset: int, geometry: Geometry, target: memoryview) -> None:
    """Consecutive bitmap blocks of which only the first bytes count."""
    group_bytes, block_bytes = geometry.clusters_per_group // 8, geometry.block_bytes
    total = len(target) // group_bytes
    step = max(_BUFFER_BYTES // block_bytes, 1)
    for first in range(0, total, step):
        count = min(step, total - first)
        raw = np.frombuffer(source.read(offset + first * block_bytes, count * block_bytes), np.uint8)
        short = raw.reshape(count, block_bytes)[:, :group_bytes]
        target[first * group_bytes : (first + count) * group_bytes] = short.tobytes()


def _check_bitmap_checksums(geometry: Geometry, groups: Groups, used: bitarray) -> None:
    if not geometry.has_metadata_csum:
        return
    group_bytes = geometry.clusters_per_group // 8
    mask = 0xFFFFFFFF if geometry.desc_size >= layout.DESCRIPTOR_64_BYTES else 0xFFFF
    expected = groups.bitmap_checksum.tolist()
    with memoryview(used) as view:
        for group in np.flatnonzero(~groups.is_uninit).tolist():
            bitmap = bytes(view[group * group_bytes : (group + 1) * group_bytes])
            if crc32c_raw(geometry.seed, bitmap) & mask != expected[group]:
                raise MapError(f"has a wrong checksum in the bitmap of group {group}")


def mark_fixed_metadata(geometry: Geometry, groups: Groups, used: bitarray) -> None:
    """Set the bits of what lies at a fixed place, in a map with a bit for each cluster."""
    ranges = geometry.super_and_gdt_ranges()
    ranges += [(block, 1) for block in groups.block_bitmap.tolist()]
    ranges += [(block, 1) for block in groups.inode_bitmap.tolist()]
    ranges += [(block, geometry.inode_table_blocks) for block in groups.inode_table.tolist()]
    if geometry.mmp_block:
        ranges.append((geometry.mmp_block, 1))
    base, per_cluster = geometry.first_data_block, geometry.cluster_blocks
    for block, count in ranges:
        if not base <= block <= block + count <= geometry.blocks_count:
            raise MapError("has metadata outside itself")
        used[(block - base) // per_cluster : -(-(block + count - base) // per_cluster)] = 1


def _check_free_counts(geometry: Geometry, groups: Groups, used: bitarray) -> None:
    per_group = geometry.clusters_per_group
    for group, expected in enumerate(groups.free.tolist()):
        start = group * per_group
        if used.count(0, start, min(start + per_group, geometry.cluster_count)) != expected:
            raise MapError(f"has a number of free blocks in group {group} that its bitmap contradicts")
    # A write of descriptors and bitmaps together that never arrived leaves them right among themselves.
    if int(groups.free.sum()) * geometry.cluster_blocks != geometry.free_blocks:
        raise MapError("has a number of free blocks in its superblock that its groups contradict")
