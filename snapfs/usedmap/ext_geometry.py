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


@dataclass(frozen=True)
class Geometry:
    block_bytes: int
    cluster_blocks: int
    blocks_count: int
    first_data_block: int
    blocks_per_group: int
    clusters_per_group: int
    inode_table_blocks: int
    group_count: int
    desc_size: int
    reserved_gdt_blocks: int
    first_meta_bg: int
    mmp_block: int
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
    return _build(fields, raw, source.size_bytes)


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


def _build(fields: dict[str, int], raw: bytes, size_bytes: int) -> Geometry:
    is_64bit = bool(fields["incompat"] & layout.INCOMPAT_64BIT)
    is_bigalloc = bool(fields["ro_compat"] & layout.RO_COMPAT_BIGALLOC)
    log_block, log_cluster = fields["log_block_size"], fields["log_cluster_size"]
    if (
        log_block > layout.MAX_LOG_BLOCK_BYTES
        or log_cluster > layout.MAX_LOG_CLUSTER_BYTES
        or log_cluster < log_block
    ):
        raise MapError("has a senseless block size")
    if log_cluster != log_block and not is_bigalloc:
        raise MapError("has clusters without the feature for them")
    block_bytes = layout.MIN_BLOCK_BYTES << log_block
    cluster_blocks = 1 << (log_cluster - log_block)
    bits_per_block = block_bytes * 8
    blocks_count = fields["blocks_count_lo"] | (fields["blocks_count_hi"] << 32 if is_64bit else 0)
    clusters_per_group = fields["clusters_per_group"] if is_bigalloc else fields["blocks_per_group"]
    if not 0 < clusters_per_group <= bits_per_block or clusters_per_group % 8:
        raise MapError("has senseless groups")
    if fields["blocks_per_group"] != clusters_per_group * cluster_blocks:
        raise MapError("has groups that do not fit its clusters")
    first_data_block = fields["first_data_block"]
    if first_data_block != int(block_bytes == layout.MIN_BLOCK_BYTES and not is_bigalloc):
        raise MapError("starts at a senseless block")
    if not first_data_block < blocks_count or blocks_count * block_bytes > size_bytes:
        raise MapError(f"claims {blocks_count * block_bytes} bytes but has a place of {size_bytes}")
    desc_size = fields["desc_size"] if is_64bit else layout.DESCRIPTOR_BYTES
    if is_64bit and (
        desc_size < layout.DESCRIPTOR_64_BYTES or desc_size > block_bytes or desc_size & (desc_size - 1)
    ):
        raise MapError("has group descriptors of a senseless size")
    group_count = -(-(blocks_count - first_data_block) // fields["blocks_per_group"])
    inode_bytes = fields["inode_size"] if fields["rev_level"] else layout.REV_0_INODE_BYTES
    inodes_per_group = fields["inodes_per_group"]
    if not 0 < inodes_per_group <= bits_per_block or not 128 <= inode_bytes <= block_bytes:
        raise MapError("has senseless inodes")
    if inodes_per_group * group_count != fields["inodes_count"]:
        raise MapError("has a number of inodes that does not fit its groups")
    uuid = raw[layout.UUID_OFFSET : layout.UUID_OFFSET + layout.UUID_BYTES]
    has_seed = fields["incompat"] & layout.INCOMPAT_CSUM_SEED
    return Geometry(
        block_bytes=block_bytes,
        cluster_blocks=cluster_blocks,
        blocks_count=blocks_count,
        first_data_block=first_data_block,
        blocks_per_group=fields["blocks_per_group"],
        clusters_per_group=clusters_per_group,
        inode_table_blocks=-(-inodes_per_group * inode_bytes // block_bytes),
        group_count=group_count,
        desc_size=desc_size,
        reserved_gdt_blocks=fields["reserved_gdt_blocks"],
        first_meta_bg=fields["first_meta_bg"],
        mmp_block=fields["mmp_block"],
        state=fields["state"],
        compat=fields["compat"],
        incompat=fields["incompat"],
        ro_compat=fields["ro_compat"],
        backup_groups=(fields["backup_group_1"], fields["backup_group_2"]),
        uuid=uuid,
        seed=fields["checksum_seed"] if has_seed else crc32c_raw(0xFFFFFFFF, uuid),
    )


def _is_power(number: int, base: int) -> bool:
    while number % base == 0:
        number //= base
    return number == 1
