"""Where things are on a FAT volume, from its boot sector, as far as that makes sense.

Rules
1. FAT32 is what has no 16-bit size of its FAT; else the number of clusters tells FAT12 from FAT16. Small
   FAT32 volumes have as few clusters as FAT16 and would be misread by their number alone.
2. The boot sector has no checksum. What can be checked is: the sizes must fit each other and the source,
   and the backup boot sector of FAT32 must say the same.

Layout and its sources: `fat_layout`.
"""

from __future__ import annotations

from dataclasses import dataclass

from snapfs.usedmap import fat_layout as layout
from snapfs.usedmap.fat_layout import FatKind
from snapfs.usedmap.result import MapError
from snapfs.usedmap.source import Source


@dataclass(frozen=True)
class Geometry:
    """Offsets are bytes of the volume; `root_cluster` is 0 where the root directory has `root_bytes` of its own."""

    kind: FatKind
    cluster_bytes: int
    cluster_count: int
    fat_offsets: tuple[int, ...]
    fat_bytes: int
    root_offset: int
    root_bytes: int
    data_offset: int
    medium: int
    root_cluster: int
    state: int

    @property
    def last_cluster(self) -> int:
        return self.cluster_count + layout.FIRST_CLUSTER - 1

    def cluster_offset(self, cluster: int) -> int:
        return self.data_offset + (cluster - layout.FIRST_CLUSTER) * self.cluster_bytes


@dataclass(frozen=True)
class _Boot:
    """The fields of a boot sector, in their order."""

    sector_bytes: int
    cluster_sectors: int
    reserved_sectors: int
    fat_count: int
    root_entries: int
    sectors_16: int
    medium: int
    fat_sectors_16: int
    sectors_32: int
    fat_sectors_32: int
    flags: int
    version: int
    root_cluster: int
    backup_sector: int
    mark: int

    @property
    def sectors(self) -> int:
        return self.sectors_16 or self.sectors_32

    @property
    def fat_sectors(self) -> int:
        return self.fat_sectors_16 or self.fat_sectors_32


def read_geometry(source: Source) -> Geometry:
    """The geometry of the volume, every number checked against the others and against the source."""
    raw = source.read(0, layout.BOOT_BYTES)
    boot = _Boot(*layout.BOOT.unpack(raw))
    _check_fields(boot)
    if boot.sectors * boot.sector_bytes > source.size_bytes:
        raise MapError("is larger than its place")
    root_sectors = -(-boot.root_entries * layout.DIRECTORY_ENTRY_BYTES // boot.sector_bytes)
    data_sector = boot.reserved_sectors + boot.fat_count * boot.fat_sectors + root_sectors
    cluster_count = (boot.sectors - data_sector) // boot.cluster_sectors
    kind = _kind(boot, cluster_count)
    _check_fat_size(boot, kind, cluster_count)
    if kind is layout.FAT32:
        _check_fat32(source, raw, boot)
    fat_bytes = boot.fat_sectors * boot.sector_bytes
    first_fat = boot.reserved_sectors * boot.sector_bytes
    return Geometry(
        kind=kind,
        cluster_bytes=boot.cluster_sectors * boot.sector_bytes,
        cluster_count=cluster_count,
        fat_offsets=tuple(first_fat + number * fat_bytes for number in range(boot.fat_count)),
        fat_bytes=fat_bytes,
        root_offset=first_fat + boot.fat_count * fat_bytes,
        root_bytes=boot.root_entries * layout.DIRECTORY_ENTRY_BYTES,
        data_offset=data_sector * boot.sector_bytes,
        medium=boot.medium,
        root_cluster=boot.root_cluster if kind is layout.FAT32 else 0,
        state=raw[kind.state_offset],
    )


def _check_fields(boot: _Boot) -> None:
    if boot.mark != layout.BOOT_MARK:
        raise MapError("has no valid boot sector")
    if boot.sector_bytes not in layout.SECTOR_BYTES or boot.cluster_sectors not in layout.SECTORS_PER_CLUSTER:
        raise MapError(f"has clusters of {boot.cluster_sectors} sectors of {boot.sector_bytes} bytes")
    if boot.reserved_sectors == 0 or not 1 <= boot.fat_count <= layout.FAT_COUNT_MAX or not boot.fat_sectors:
        raise MapError("has no FAT where one belongs")


def _kind(boot: _Boot, cluster_count: int) -> FatKind:
    if boot.fat_sectors_16 == 0:
        kind = layout.FAT32
    else:
        kind = layout.FAT12 if cluster_count <= layout.FAT12.clusters_max else layout.FAT16
    if not 0 < cluster_count <= kind.clusters_max:
        raise MapError(f"has {cluster_count} clusters, which {kind.name} cannot have")
    if (boot.root_entries == 0) != (kind is layout.FAT32):
        raise MapError("has a root directory that does not fit its kind")
    return kind


def _check_fat_size(boot: _Boot, kind: FatKind, cluster_count: int) -> None:
    """A FAT too small is broken; one far too large speaks of a wrong cluster size."""
    entries = cluster_count + layout.FIRST_CLUSTER
    needed_sectors = -(-entries * kind.bits // (8 * boot.sector_bytes))
    # Formatters round up, some to whole clusters; a doubled cluster size would halve what is needed.
    plausible_sectors = needed_sectors + needed_sectors // 2 + 2 * boot.cluster_sectors + 16
    if not needed_sectors <= boot.fat_sectors <= plausible_sectors:
        raise MapError(f"has a FAT of {boot.fat_sectors} sectors where {needed_sectors} are needed")


def _check_fat32(source: Source, raw: bytes, boot: _Boot) -> None:
    if boot.version or boot.flags & layout.NOT_MIRRORED:
        raise MapError("keeps only one of its FATs up to date")
    if boot.backup_sector in (0, 0xFFFF):
        return
    if boot.backup_sector >= boot.reserved_sectors:
        raise MapError("has its backup boot sector outside the reserved area")
    backup = source.read(boot.backup_sector * boot.sector_bytes, layout.BOOT_BYTES)
    if backup[layout.GEOMETRY_BYTES] != raw[layout.GEOMETRY_BYTES]:
        raise MapError("has a boot sector that differs from its backup")
