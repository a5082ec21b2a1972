"""Shape of an ext filesystem: which groups it has, and where its fixed metadata lie.

A `Geometry` exists only for a superblock that is whole, known in all its features, and makes sense;
anything else is a `MapError`. Whether the filesystem is *clean* is not decided here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from snapfs.usedmap import ext_layout as layout
from snapfs.usedmap.checksums import crc32c_raw
from snapfs.usedmap.result import MapError
from snapfs.usedmap.source import Source

# 256 TiB of the usual 128 MiB groups. What claims more would only make us fill the memory with descriptors.
_MAX_GROUPS = 1 << 21


@dataclass(frozen=True)
class Geometry:
    """Sizes in the units of their names; flags as they stand in the superblock."""

    block_bytes: int
    cluster_blocks: int
    blocks_count: int
    free_blocks: int
    first_data_block: int
    blocks_per_group: int
    clusters_per_group: int
    inodes_per_group: int
    inode_bytes: int
    inode_table_blocks: int
    group_count: int
    desc_size: int
    reserved_gdt_blocks: int
    first_meta_bg: int
    mmp_block: int
    creator_os: int
    state: int
    compat: int
    incompat: int
    ro_compat: int
    backup_groups: tuple[int, int]
    uuid: bytes
    seed: int

    @property
    def has_metadata_csum(self) -> bool:
        return bool(self.ro_compat & layout.RO_COMPAT_METADATA_CSUM)

    @property
    def has_gdt_csum(self) -> bool:
        return bool(self.ro_compat & layout.RO_COMPAT_GDT_CSUM)

    @property
    def has_journal(self) -> bool:
        return bool(self.compat & layout.COMPAT_HAS_JOURNAL)

    @property
    def has_meta_bg(self) -> bool:
        return bool(self.incompat & layout.INCOMPAT_META_BG)

    @property
    def has_uninit_groups(self) -> bool:
        """Whether descriptors may say that bitmaps and inode tables of their group were never written."""
        return self.has_gdt_csum or self.has_metadata_csum

    @property
    def cluster_count(self) -> int:
        return -(-(self.blocks_count - self.first_data_block) // self.cluster_blocks)

    @property
    def descriptors_per_block(self) -> int:
        return self.block_bytes // self.desc_size

    @property
    def gdt_blocks(self) -> int:
        return -(-self.group_count // self.descriptors_per_block)

    def group_start(self, group: int) -> int:
        """First block of the group for metadata; block 0 of a 1 KiB bigalloc filesystem is the boot block."""
        start = self.first_data_block + group * self.blocks_per_group
        return 1 if start == 0 and self.block_bytes == layout.MIN_BLOCK_BYTES else start

    def has_super(self, group: int) -> bool:
        """Whether `group` has a copy of the superblock (group 0 has the original)."""
        if group == 0:
            return True
        if self.compat & layout.COMPAT_SPARSE_SUPER2:
            return group in self.backup_groups
        if self.ro_compat & layout.RO_COMPAT_SPARSE_SUPER:
            return group == 1 or any(_is_power(group, base) for base in (3, 5, 7))
        return True

    def contiguous_gdt_blocks(self) -> int:
        """Blocks of the table that directly follows each superblock, not counting what is reserved for growth."""
        return min(self.first_meta_bg, self.gdt_blocks) if self.has_meta_bg else self.gdt_blocks

    def gdt_block_places(self) -> list[int]:
        """The block of each block of the (primary) table of group descriptors."""
        first = self.group_start(0) + 1
        places = [first + index for index in range(self.contiguous_gdt_blocks())]
        for meta_group in range(len(places), self.gdt_blocks):
            group = meta_group * self.descriptors_per_block
            places.append(self.group_start(group) + self.has_super(group))
        return places

    def super_and_gdt_ranges(self) -> list[tuple[int, int]]:
        """(first block, count) of the superblocks and descriptor tables, copies included, of all groups."""
        ranges = []
        old_blocks = self.contiguous_gdt_blocks() if self.has_meta_bg else self.gdt_blocks + self.reserved_gdt_blocks
        for group in filter(self.has_super, range(self.group_count)):
            ranges.append((self.group_start(group), 1 + old_blocks))
        if self.has_meta_bg:
            per_block = self.descriptors_per_block
            for meta_group in range(self.first_meta_bg, self.gdt_blocks):
                first = meta_group * per_block
                for group in {first, first + 1, first + per_block - 1}:
                    if group < self.group_count:
                        ranges.append((self.group_start(group) + self.has_super(group), 1))
        return ranges


def read_geometry(source: Source) -> Geometry:
    """The shape that the superblock tells, after all checks that need nothing but the superblock."""
    raw = source.read(layout.SUPERBLOCK_OFFSET, layout.SUPERBLOCK_BYTES)
    record = np.frombuffer(raw, layout.SUPERBLOCK)[0]
    fields = {name: int(record[name]) for name in layout.SUPERBLOCK.names or ()}
    if fields["magic"] != layout.MAGIC:
        raise MapError("has no superblock")
    _check_features(fields)
    _check_superblock_checksum(fields, raw)
    _check_sizes(fields)
    geometry = _build(fields, raw)
    _check_fit(geometry, fields, source.size_bytes)
    return geometry


def _check_features(fields: dict[str, int]) -> None:
    if fields["incompat"] & layout.INCOMPAT_RECOVER:
        raise MapError("needs journal recovery: it is mounted, or was not unmounted")
    if fields["rev_level"] > layout.REV_DYNAMIC:
        raise MapError(f"is of revision {fields['rev_level']}, which is not known")
    for name, known in (
        ("compat", layout.KNOWN_COMPAT),
        ("incompat", layout.KNOWN_INCOMPAT),
        ("ro_compat", layout.KNOWN_RO_COMPAT),
    ):
        if unknown := fields[name] & ~known:
            raise MapError(f"has unknown features ({name} 0x{unknown:x})")
    if fields["ro_compat"] & layout.RO_COMPAT_GDT_CSUM and fields["ro_compat"] & layout.RO_COMPAT_METADATA_CSUM:
        raise MapError("claims two kinds of descriptor checksums at once")


def _check_superblock_checksum(fields: dict[str, int], raw: bytes) -> None:
    if not fields["ro_compat"] & layout.RO_COMPAT_METADATA_CSUM:
        return
    if fields["checksum_type"] != layout.CHECKSUM_TYPE_CRC32C:
        raise MapError("uses an unknown kind of checksum")
    if crc32c_raw(0xFFFFFFFF, raw[: layout.CHECKSUM_OFFSET]) != fields["checksum"]:
        raise MapError("has a superblock with a wrong checksum")


def _check_sizes(fields: dict[str, int]) -> None:
    """Blocks, clusters, groups and inodes have sizes that go together."""
    log_block, log_cluster = fields["log_block_size"], fields["log_cluster_size"]
    if log_block > layout.MAX_LOG_BLOCK_BYTES or not log_block <= log_cluster <= layout.MAX_LOG_CLUSTER_BYTES:
        raise MapError("has a senseless block size")
    if log_cluster != log_block and not _is_bigalloc(fields):
        raise MapError("has clusters without the feature for them")
    block_bytes = layout.MIN_BLOCK_BYTES << log_block
    clusters = _clusters_per_group(fields)
    if not 0 < clusters <= block_bytes * 8 or clusters % 8:
        raise MapError("has senseless groups")
    if fields["blocks_per_group"] != clusters << (log_cluster - log_block):
        raise MapError("has groups that do not fit its clusters")
    if fields["first_data_block"] != int(block_bytes == layout.MIN_BLOCK_BYTES and not _is_bigalloc(fields)):
        raise MapError("starts at a senseless block")
    desc_size = _desc_size(fields)
    smallest = layout.DESCRIPTOR_64_BYTES if fields["incompat"] & layout.INCOMPAT_64BIT else layout.DESCRIPTOR_BYTES
    if not smallest <= desc_size <= block_bytes or desc_size & (desc_size - 1):
        raise MapError("has group descriptors of a senseless size")
    inode_bytes = _inode_bytes(fields)
    if not 128 <= inode_bytes <= block_bytes or inode_bytes & (inode_bytes - 1):
        raise MapError("has inodes of a senseless size")
    if not 0 < fields["inodes_per_group"] <= block_bytes * 8:
        raise MapError("has senseless inodes")


def _check_fit(geometry: Geometry, fields: dict[str, int], size_bytes: int) -> None:
    """The whole goes into its place and is divided as its superblock says."""
    total_bytes = geometry.blocks_count * geometry.block_bytes
    if geometry.first_data_block >= geometry.blocks_count or total_bytes > size_bytes:
        raise MapError(f"claims {total_bytes} bytes but has a place of {size_bytes}")
    if geometry.group_count > _MAX_GROUPS:
        raise MapError("has senselessly many groups")
    if fields["inodes_per_group"] * geometry.group_count != fields["inodes_count"]:
        raise MapError("has a number of inodes that does not fit its groups")


def _build(fields: dict[str, int], raw: bytes) -> Geometry:
    block_bytes = layout.MIN_BLOCK_BYTES << fields["log_block_size"]
    blocks_count = _wide(fields, "blocks_count")
    uuid = raw[layout.UUID_OFFSET : layout.UUID_OFFSET + layout.UUID_BYTES]
    has_seed = fields["incompat"] & layout.INCOMPAT_CSUM_SEED
    return Geometry(
        block_bytes=block_bytes,
        cluster_blocks=1 << (fields["log_cluster_size"] - fields["log_block_size"]),
        blocks_count=blocks_count,
        free_blocks=_wide(fields, "free_blocks"),
        first_data_block=fields["first_data_block"],
        blocks_per_group=fields["blocks_per_group"],
        clusters_per_group=_clusters_per_group(fields),
        inodes_per_group=fields["inodes_per_group"],
        inode_bytes=_inode_bytes(fields),
        inode_table_blocks=-(-fields["inodes_per_group"] * _inode_bytes(fields) // block_bytes),
        group_count=-(-(blocks_count - fields["first_data_block"]) // fields["blocks_per_group"]),
        desc_size=_desc_size(fields),
        reserved_gdt_blocks=fields["reserved_gdt_blocks"],
        first_meta_bg=fields["first_meta_bg"],
        mmp_block=fields["mmp_block"],
        creator_os=fields["creator_os"],
        state=fields["state"],
        compat=fields["compat"],
        incompat=fields["incompat"],
        ro_compat=fields["ro_compat"],
        backup_groups=(fields["backup_group_1"], fields["backup_group_2"]),
        uuid=uuid,
        seed=fields["checksum_seed"] if has_seed else crc32c_raw(0xFFFFFFFF, uuid),
    )


def _wide(fields: dict[str, int], name: str) -> int:
    """A number whose high half counts only under the 64bit feature."""
    high = fields[f"{name}_hi"] if fields["incompat"] & layout.INCOMPAT_64BIT else 0
    return fields[f"{name}_lo"] | high << 32


def _is_bigalloc(fields: dict[str, int]) -> bool:
    return bool(fields["ro_compat"] & layout.RO_COMPAT_BIGALLOC)


def _clusters_per_group(fields: dict[str, int]) -> int:
    return fields["clusters_per_group"] if _is_bigalloc(fields) else fields["blocks_per_group"]


def _desc_size(fields: dict[str, int]) -> int:
    if not fields["incompat"] & layout.INCOMPAT_64BIT:
        return layout.DESCRIPTOR_BYTES
    return fields["desc_size"]


def _inode_bytes(fields: dict[str, int]) -> int:
    return fields["inode_size"] if fields["rev_level"] else layout.REV_0_INODE_BYTES


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1
