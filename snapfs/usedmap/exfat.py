"""Free clusters of an exFAT volume, from its allocation bitmap.

Rules
1. The boot region has the right checksum, and its numbers fit each other and the source.
2. Clean: none of the flags "dirty", "media failure", "second FAT active".
3. One allocation bitmap, named in the root directory, as long as the number of clusters asks for, at the end
   of a chain of exactly its clusters.
4. The bitmap calls its own clusters, the root directory and the up-case table used.
5. Everything outside the cluster heap is outside the map: used.

Layout and its source: `exfat_layout`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from bitarray import bitarray

from snapfs.usedmap import exfat_layout as layout
from snapfs.usedmap.result import FreeMap, MapError
from snapfs.usedmap.source import Source

# Formatters put the entries of the bitmap and the up-case table first; a search ends here.
_ROOT_SEARCH_BYTES = 1 << 20
# FAT entries read at once while a chain is followed.
_LINKS_AT_ONCE = 2048
# A bitmap is made in one piece by formatters; this bounds the reads a broken FAT can ask for.
_CHAIN_RUNS_MAX = 4096


class _Run(NamedTuple):
    """`length` clusters from cluster number `first` on."""

    first: int
    length: int


@dataclass(frozen=True)
class _Boot:
    """The fields of the boot sector, in their order."""

    jump: bytes
    name: bytes
    zeros: bytes
    sectors: int
    fat_sector: int
    fat_sectors: int
    heap_sector: int
    cluster_count: int
    root_cluster: int
    revision: int
    flags: int
    sector_shift: int
    cluster_shift: int
    fat_count: int
    mark: int


@dataclass(frozen=True)
class _Volume:
    """The geometry of a volume whose boot region is whole."""

    source: Source
    cluster_bytes: int
    cluster_count: int
    fat_offset: int
    heap_offset: int
    root_cluster: int

    @property
    def last_cluster(self) -> int:
        return self.cluster_count + layout.FIRST_CLUSTER - 1

    def cluster_offset(self, cluster: int) -> int:
        return self.heap_offset + (cluster - layout.FIRST_CLUSTER) * self.cluster_bytes

    def check_cluster(self, cluster: int) -> None:
        if not layout.FIRST_CLUSTER <= cluster <= self.last_cluster:
            raise MapError("has a chain of clusters that leaves the volume")


@dataclass(frozen=True)
class _Root:
    """What the root directory says about system structures."""

    clusters: list[_Run]
    bitmap_cluster: int
    bitmap_bytes: int
    upcase_cluster: int


def read_free_map(source: Source, *, frozen_by_us: bool = False) -> FreeMap:
    """Free clusters; `frozen_by_us` changes nothing: a driver that is frozen has still marked the volume."""
    volume = _open_volume(source)
    root = _read_root(volume)
    if root.bitmap_bytes != (volume.cluster_count + 7) // 8:
        raise MapError("has an allocation bitmap of a wrong length")
    runs = _chain(volume, root.bitmap_cluster, -(-root.bitmap_bytes // volume.cluster_bytes))
    free = _read_bitmap(volume, runs, root.bitmap_bytes)
    for run in [*runs, *root.clusters, _Run(root.upcase_cluster, 1)]:
        volume.check_cluster(run.first)
        bit = run.first - layout.FIRST_CLUSTER
        if free.find(1, bit, bit + run.length) >= 0:
            raise MapError("has an allocation bitmap that calls its own structures free")
    return FreeMap(volume.cluster_bytes, volume.heap_offset, free)


def _open_volume(source: Source) -> _Volume:
    boot = _Boot(*layout.BOOT.unpack(source.read(0, layout.BOOT_BYTES)))
    if (boot.jump, boot.name, boot.mark) != (layout.BOOT_JUMP, layout.BOOT_NAME, layout.BOOT_MARK):
        raise MapError("has no valid boot sector")
    low, high = layout.SECTOR_SHIFT_RANGE
    cluster_shift = boot.sector_shift + boot.cluster_shift
    if not low <= boot.sector_shift <= high or cluster_shift > layout.CLUSTER_SHIFT_MAX:
        raise MapError(f"has sectors of 2^{boot.sector_shift} and clusters of 2^{cluster_shift} bytes")
    _check_checksum(source, 1 << boot.sector_shift)
    _check_state(boot)
    _check_sizes(boot)
    if boot.sectors << boot.sector_shift > source.size_bytes:
        raise MapError("is larger than its place")
    return _Volume(
        source=source,
        cluster_bytes=1 << cluster_shift,
        cluster_count=boot.cluster_count,
        fat_offset=boot.fat_sector << boot.sector_shift,
        heap_offset=boot.heap_sector << boot.sector_shift,
        root_cluster=boot.root_cluster,
    )


def _check_state(boot: _Boot) -> None:
    if boot.revision >> 8 != layout.REVISION_MAJOR:
        raise MapError(f"has the unknown revision {boot.revision >> 8}.{boot.revision & 0xFF:02}")
    if boot.fat_count != 1 or boot.flags & layout.ACTIVE_FAT:
        raise MapError("has two FATs (TexFAT), which is not supported")
    if boot.flags & layout.VOLUME_DIRTY:
        raise MapError("is marked dirty")
    if boot.flags & layout.MEDIA_FAILURE:
        raise MapError("is marked as having had media failures")


def _check_sizes(boot: _Boot) -> None:
    fat_bytes = (boot.cluster_count + layout.FIRST_CLUSTER) * layout.FAT_ENTRY_BYTES
    if (
        any(boot.zeros)
        or not 0 < boot.cluster_count <= layout.CLUSTER_COUNT_MAX
        or boot.fat_sector < layout.FAT_SECTOR_MIN
        or boot.fat_sectors << boot.sector_shift < fat_bytes
        or boot.heap_sector < boot.fat_sector + boot.fat_sectors
        or boot.sectors < boot.heap_sector + (boot.cluster_count << boot.cluster_shift)
    ):
        raise MapError("has a boot sector whose numbers contradict each other")


def _check_checksum(source: Source, sector_bytes: int) -> None:
    region = source.read(0, (layout.CHECKSUM_SECTOR + 1) * sector_bytes)
    summed = layout.CHECKSUM_SECTOR * sector_bytes
    if region[summed:] != boot_checksum(region[:summed]).to_bytes(4, "little") * (sector_bytes // 4):
        raise MapError("has a boot region with a wrong checksum")


def boot_checksum(sectors: bytes) -> int:
    """The sum of the first eleven sectors: rotate right by one bit, add the next byte."""
    total = 0
    for index, byte in enumerate(sectors):
        if index not in layout.UNSUMMED_BYTES:
            total = ((total >> 1 | (total & 1) << 31) + byte) & 0xFFFFFFFF
    return total


def _read_root(volume: _Volume) -> _Root:
    """Search the beginning of the root directory for the bitmap and the up-case table."""
    most = max(1, _ROOT_SEARCH_BYTES // volume.cluster_bytes)
    clusters = _chain(volume, volume.root_cluster, most, exact=False)
    bitmaps: list[tuple[int, int]] = []
    upcases: list[int] = []
    for entry in _root_entries(volume, clusters):
        flags, cluster, length = layout.BITMAP_ENTRY.unpack_from(entry)
        if entry[0] == layout.ENTRY_BITMAP and flags & layout.SECOND_BITMAP:
            raise MapError("has two allocation bitmaps (TexFAT), which is not supported")
        if entry[0] == layout.ENTRY_BITMAP:
            bitmaps.append((cluster, length))
        elif entry[0] == layout.ENTRY_UPCASE:
            upcases.append(cluster)
    if len(bitmaps) != 1 or len(upcases) != 1:
        raise MapError("does not name one allocation bitmap and one up-case table in its root directory")
    return _Root(clusters, *bitmaps[0], upcases[0])


def _root_entries(volume: _Volume, runs: list[_Run]) -> list[bytes]:
    """Entries up to the end mark or the end of the search."""
    step = layout.DIRECTORY_ENTRY_BYTES
    entries: list[bytes] = []
    for run in runs:
        length = min(run.length * volume.cluster_bytes, _ROOT_SEARCH_BYTES)
        content = volume.source.read(volume.cluster_offset(run.first), length)
        for at in range(0, length, step):
            if content[at] == layout.ENTRY_END:
                return entries
            entries.append(content[at : at + step])
    return entries


def _chain(volume: _Volume, first: int, count: int, *, exact: bool = True) -> list[_Run]:
    """The first `count` clusters of a chain as runs; `exact` if it must end there, else it may be shorter."""
    runs: list[_Run] = []
    cluster, left = first, count
    while left:
        volume.check_cluster(cluster)
        if len(runs) == _CHAIN_RUNS_MAX:
            raise MapError("has a system structure in too many pieces")
        length, following = _row(volume, cluster, left)
        runs.append(_Run(cluster, length))
        left -= length
        if following == layout.CHAIN_END:
            break
        cluster = following
    if exact and (left or following != layout.CHAIN_END):
        raise MapError("has an allocation bitmap whose chain of clusters has a wrong length")
    return runs


def _row(volume: _Volume, cluster: int, most: int) -> tuple[int, int]:
    """How many clusters follow each other from `cluster` on (at most `most`), and what the last points to."""
    count = min(most, _LINKS_AT_ONCE, volume.last_cluster - cluster + 1)
    raw = volume.source.read(volume.fat_offset + cluster * layout.FAT_ENTRY_BYTES, count * layout.FAT_ENTRY_BYTES)
    links = np.frombuffer(raw, dtype="<u4").astype(np.int64)
    jumps = np.flatnonzero(links != np.arange(cluster + 1, cluster + 1 + count))
    last = int(jumps[0]) if len(jumps) else count - 1
    return last + 1, int(links[last])


def _read_bitmap(volume: _Volume, runs: list[_Run], length: int) -> bitarray:
    bits = bitarray(8 * length, endian="little")
    with memoryview(bits) as view:
        done = 0
        for run in runs:
            count = min(run.length * volume.cluster_bytes, length - done)
            with view[done : done + count] as part:
                volume.source.readinto(volume.cluster_offset(run.first), part)
            done += count
    bits.invert()
    del bits[volume.cluster_count :]
    return bits
