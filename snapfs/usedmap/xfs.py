"""The map of XFS, from the tree of free extents by block number (bnobt) of each allocation group.

Trusted only when all of this holds:
1. version 5 (everything has checksums) or 4, every feature known, no repair asked for, an internal log;
2. the log needs no recovery (see `xfs_log`);
3. the header of each allocation group and every tree block have the right checksum, place, owner and filesystem,
   the free extents are in order, and they sum up to the count in the header, and after an unmount all groups
   together to the count in the superblock: a lost write of a whole header with its trees would be right in itself;
4. neither the headers of a group nor the log are among the free extents;
5. version 4, which has no checksums: all copies of the superblock agree about where things are, and the tree of free
   extents by length holds exactly the same ones.

Whatever is in no tree is used; that includes the few blocks that each group keeps in reserve for its trees.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from bitarray import bitarray
from bitarray.util import zeros
from numpy.typing import NDArray

from snapfs.usedmap import xfs_layout as layout
from snapfs.usedmap.checksums import crc32c_with_zeroed_field
from snapfs.usedmap.result import FreeMap, MapError
from snapfs.usedmap.source import Source
from snapfs.usedmap.xfs_log import check_log_clean


@dataclass(frozen=True)
class _Shape:
    version: int
    block_bytes: int
    sector_bytes: int
    data_blocks: int
    ag_blocks: int
    ag_count: int
    free_blocks: int | None  # by the superblock, as the driver counts: with reserves and trees; None: it does not say
    log_first_block: int
    log_blocks: int
    uuid: bytes
    meta_uuid: bytes

    def ag_length(self, ag: int) -> int:
        return min(self.ag_blocks, self.data_blocks - ag * self.ag_blocks)

    @property
    def header_blocks(self) -> int:
        return -(-layout.AG_HEADER_SECTORS * self.sector_bytes // self.block_bytes)


@dataclass(frozen=True)
class _Tree:
    """Where a tree of free extents begins, and what its blocks begin with."""

    magic: bytes
    root_block: int
    levels: int


@dataclass(frozen=True)
class _AgHeader:
    by_block: _Tree
    by_length: _Tree
    free_blocks: int
    reserved_blocks: int
    tree_blocks: int


@dataclass(frozen=True)
class _TreeBlock:
    records: int
    right_block: int
    body: bytes


def read_free_map(source: Source, *, frozen_by_us: bool = False) -> FreeMap:
    """The free blocks; `MapError` when they cannot be trusted. A freeze shows in the log, not in `frozen_by_us`."""
    shape = _read_shape(source)
    was_unmounted = _check_log(source, shape)
    free = zeros(shape.data_blocks, "little")
    free_blocks = sum(_mark_free(source, shape, ag, free) for ag in range(shape.ag_count))
    # While it is mounted, blocks that its trees may come to need count as taken.
    if was_unmounted and shape.free_blocks not in (None, free_blocks):
        raise MapError("has a number of free blocks in its superblock that its allocation groups contradict")
    if free.find(1, shape.log_first_block, shape.log_first_block + shape.log_blocks) >= 0:
        raise MapError("counts its own log as free")
    return FreeMap(shape.block_bytes, 0, free)


def needs_log(source: Source) -> bool:
    """Whether something may be missing that only the log has, when that is not replayed."""
    try:
        _check_log(source, _read_shape(source))
    except MapError:
        return True
    return False


def _check_log(source: Source, shape: _Shape) -> bool:
    log = source.window(shape.log_first_block * shape.block_bytes, shape.log_blocks * shape.block_bytes)
    return check_log_clean(log, shape.uuid, may_be_old=shape.version == layout.VERSION_4)


def _read_shape(source: Source) -> _Shape:
    raw = source.read(0, layout.MIN_SUPERBLOCK_BYTES)
    if raw[:4] != layout.SUPERBLOCK_MAGIC:
        raise MapError("has no superblock")
    fields = _superblock_fields(raw)
    version = fields["version"] & layout.VERSION_NUMBER_MASK
    _check_kind(fields)
    if version == layout.VERSION_5:
        _check_superblock_checksum(source, fields["sector_bytes"])
        _check_features_5(fields)
    elif version == layout.VERSION_4:
        _check_features_4(fields)
    else:
        raise MapError(f"is of version {version}, which is not known")
    shape = _checked_shape(fields, raw, source.size_bytes)
    if version == layout.VERSION_4:
        _check_superblock_copies(source, shape, raw)
    return shape


def _superblock_fields(raw: bytes) -> dict[str, int]:
    return {
        name: int(struct.unpack_from(form, raw, offset)[0])
        for name, (form, offset) in layout.SUPERBLOCK_FIELDS.items()
    }


def _check_superblock_checksum(source: Source, sector_bytes: int) -> None:
    _check_crc(source.read(0, sector_bytes), layout.SUPERBLOCK_CRC_OFFSET, "superblock")


def _check_superblock_copies(source: Source, shape: _Shape, raw: bytes) -> None:
    """Every group begins with a copy; nothing else protects the one that was read."""
    first = _superblock_fields(raw)
    for ag in range(1, shape.ag_count):
        offset = ag * shape.ag_blocks * shape.block_bytes
        copy = _superblock_fields(source.read(offset, layout.MIN_SUPERBLOCK_BYTES))
        if any(copy[name] != first[name] for name in layout.GEOMETRY_FIELDS):
            raise MapError(f"has a superblock that differs from its copy in allocation group {ag}")


def _check_features_5(fields: dict[str, int]) -> None:
    if fields["incompat"] & layout.INCOMPAT_NEEDS_REPAIR:
        raise MapError("is marked as in need of repair")
    for name, known in (
        ("ro_compat", layout.KNOWN_RO_COMPAT),
        ("incompat", layout.KNOWN_INCOMPAT),
        ("log_incompat", layout.KNOWN_LOG_INCOMPAT),
    ):
        if unknown := fields[name] & ~known:
            raise MapError(f"has unknown features ({name} 0x{unknown:x})")


def _check_features_4(fields: dict[str, int]) -> None:
    if unknown := fields["version"] & ~layout.VERSION_NUMBER_MASK & ~layout.KNOWN_VERSION_4:
        raise MapError(f"has unknown features (version 0x{unknown:x})")
    has_more = fields["version"] & layout.VERSION_4_MORE_FEATURES
    if has_more and (unknown := fields["features2"] & ~layout.KNOWN_FEATURES2):
        raise MapError(f"has unknown features (features2 0x{unknown:x})")


def _check_kind(fields: dict[str, int]) -> None:
    if not 512 <= fields["sector_bytes"] <= 32768 or fields["sector_bytes"] & (fields["sector_bytes"] - 1):
        raise MapError("has a senseless sector size")
    if fields["in_progress"]:
        raise MapError("was not made to the end")
    if fields["realtime_blocks"]:
        raise MapError("has a realtime section")
    if not fields["log_start"]:
        raise MapError("has its log elsewhere")


def _checked_shape(fields: dict[str, int], raw: bytes, size_bytes: int) -> _Shape:
    block_bytes = fields["block_bytes"]
    if not layout.MIN_BLOCK_BYTES <= block_bytes <= layout.MAX_BLOCK_BYTES or block_bytes & (block_bytes - 1):
        raise MapError("has a senseless block size")
    data_blocks, ag_blocks, ag_count = fields["data_blocks"], fields["ag_blocks"], fields["ag_count"]
    if not data_blocks or data_blocks * block_bytes > size_bytes:
        raise MapError(f"claims {data_blocks * block_bytes} bytes but has a place of {size_bytes}")
    if not 0 < ag_blocks * block_bytes <= layout.MAX_AG_BYTES or ag_count != -(-data_blocks // ag_blocks):
        raise MapError("has senseless allocation groups")
    if fields["ag_block_log"] != (ag_blocks - 1).bit_length():
        raise MapError("has senseless block numbers")
    log_ag, log_block = (
        fields["log_start"] >> fields["ag_block_log"],
        _low(fields["log_start"], fields["ag_block_log"]),
    )
    if log_ag >= ag_count or log_block + fields["log_blocks"] > ag_blocks:
        raise MapError("has a log outside its allocation groups")
    uuid = raw[layout.UUID_OFFSET :][: layout.UUID_BYTES]
    version = fields["version"] & layout.VERSION_NUMBER_MASK
    has_meta_uuid = version == layout.VERSION_5 and fields["incompat"] & layout.INCOMPAT_META_UUID
    has_lazy_counters = version == layout.VERSION_5 or fields["features2"] & layout.FEATURE2_LAZY_COUNTERS
    return _Shape(
        version=version,
        block_bytes=block_bytes,
        sector_bytes=fields["sector_bytes"],
        data_blocks=data_blocks,
        ag_blocks=ag_blocks,
        ag_count=ag_count,
        free_blocks=fields["free_blocks"] if has_lazy_counters else None,
        log_first_block=log_ag * ag_blocks + log_block,
        log_blocks=fields["log_blocks"],
        uuid=uuid,
        meta_uuid=raw[layout.META_UUID_OFFSET :][: layout.UUID_BYTES] if has_meta_uuid else uuid,
    )


def _mark_free(source: Source, shape: _Shape, ag: int, free: bitarray) -> int:
    """Set the bits of the free extents of one allocation group; its free blocks as the driver counts them."""
    header = _read_ag_header(source, shape, ag)
    records = _free_extents(source, shape, ag, header.by_block, header.free_blocks)
    starts, counts = records["start"].astype(np.int64), records["count"].astype(np.int64)
    ends = starts + counts
    if len(records) and (
        starts[0] < shape.header_blocks
        or ends[-1] > shape.ag_length(ag)
        or not counts.all()
        or (starts[1:] < ends[:-1]).any()
    ):
        raise MapError(f"has free extents out of order in allocation group {ag}")
    if counts.sum() != header.free_blocks:
        raise MapError(f"has a number of free blocks in allocation group {ag} that its tree contradicts")
    if shape.version == layout.VERSION_4:
        by_length = _free_extents(source, shape, ag, header.by_length, header.free_blocks)
        if not np.array_equal(by_length[np.argsort(by_length["start"])], records):
            raise MapError(f"has two lists of free extents in allocation group {ag} that differ")
    base = ag * shape.ag_blocks
    for start, end in zip((starts + base).tolist(), (ends + base).tolist(), strict=True):
        free[start:end] = 1
    return header.free_blocks + header.reserved_blocks + header.tree_blocks


def _read_ag_header(source: Source, shape: _Shape, ag: int) -> _AgHeader:
    offset = ag * shape.ag_blocks * shape.block_bytes + shape.sector_bytes
    raw = source.read(offset, shape.sector_bytes)
    magic, version, number, length, *trees, reserved, free_blocks, tree_blocks = layout.AGF.unpack_from(raw)
    if magic != layout.AGF_MAGIC or version != layout.AGF_VERSION or number != ag:
        raise MapError(f"has no header of allocation group {ag}")
    if shape.version == layout.VERSION_5:
        _check_crc(raw, layout.AGF_CRC_OFFSET, f"header of allocation group {ag}")
        if raw[layout.AGF_UUID_OFFSET :][: layout.UUID_BYTES] != shape.meta_uuid:
            raise MapError(f"has the header of another filesystem in allocation group {ag}")
    root_by_block, root_by_length, levels_by_block, levels_by_length = trees
    by_block_magic = layout.BNOBT_MAGIC if shape.version == layout.VERSION_5 else layout.BNOBT_MAGIC_4
    by_block = _Tree(by_block_magic, root_by_block, levels_by_block)
    by_length = _Tree(layout.CNTBT_MAGIC_4, root_by_length, levels_by_length)
    if length != shape.ag_length(ag) or not all(
        1 <= tree.levels <= layout.BTREE_MAX_LEVELS for tree in (by_block, by_length)
    ):
        raise MapError(f"has a senseless header of allocation group {ag}")
    return _AgHeader(by_block, by_length, free_blocks, reserved, tree_blocks)


def _free_extents(source: Source, shape: _Shape, ag: int, tree: _Tree, free_blocks: int) -> NDArray[np.void]:
    """All records of the tree: down its left edge, then along the leaves."""
    block = tree.root_block
    for level in range(tree.levels - 1, 0, -1):
        node = _read_tree_block(source, shape, ag, tree.magic, block, level)
        capacity = len(node.body) // (layout.BTREE_KEY_BYTES + layout.BTREE_POINTER_BYTES)
        if not 0 < node.records <= capacity:
            raise MapError(f"has a broken tree in allocation group {ag}")
        first_pointer = capacity * layout.BTREE_KEY_BYTES
        block = int.from_bytes(node.body[first_pointer : first_pointer + layout.BTREE_POINTER_BYTES], "big")
    return _leaf_records(source, shape, ag, tree.magic, block, free_blocks)


def _leaf_records(
    source: Source, shape: _Shape, ag: int, magic: bytes, block: int, free_blocks: int
) -> NDArray[np.void]:
    leaves = [np.empty(0, layout.BTREE_RECORD)]
    total = 0
    while block != layout.BTREE_NO_SIBLING:
        leaf = _read_tree_block(source, shape, ag, magic, block, 0)
        if leaf.records > len(leaf.body) // layout.BTREE_RECORD.itemsize:
            raise MapError(f"has a broken tree in allocation group {ag}")
        leaves.append(np.frombuffer(leaf.body, layout.BTREE_RECORD, leaf.records))
        total += leaf.records
        # An empty leaf is fine only as the whole tree; each record is a free block at least. So the walk ends.
        if (leaf.records == 0 and len(leaves) > 2) or total > free_blocks:
            raise MapError(f"has a broken tree in allocation group {ag}")
        block = leaf.right_block
    return np.concatenate(leaves)


def _read_tree_block(source: Source, shape: _Shape, ag: int, magic: bytes, block: int, level: int) -> _TreeBlock:
    if not shape.header_blocks <= block < shape.ag_length(ag):
        raise MapError(f"has a tree that leads outside allocation group {ag}")
    offset = (ag * shape.ag_blocks + block) * shape.block_bytes
    raw = source.read(offset, shape.block_bytes)
    own_magic, own_level, records, _, right = layout.BTREE_HEADER_4.unpack_from(raw)
    if (own_magic, own_level) != (magic, level):
        raise MapError(f"has a broken tree in allocation group {ag}")
    if shape.version == layout.VERSION_4:
        return _TreeBlock(records, right, raw[layout.BTREE_HEADER_4.size :])
    _check_tree_block_5(raw, shape, ag, offset)
    return _TreeBlock(records, right, raw[layout.BTREE_HEADER_BYTES :])


def _check_tree_block_5(raw: bytes, shape: _Shape, ag: int, offset: int) -> None:
    """What the later part of the header says: checksum, place, owner, filesystem."""
    *_, disk_block, _, uuid, owner = layout.BTREE_HEADER.unpack_from(raw)
    _check_crc(raw, layout.BTREE_CRC_OFFSET, f"tree of allocation group {ag}")
    if (owner, uuid) != (ag, shape.meta_uuid):
        raise MapError(f"has a broken tree in allocation group {ag}")
    if disk_block * layout.DISK_SECTOR_BYTES != offset:
        raise MapError(f"has a misplaced block in the tree of allocation group {ag}")


def _check_crc(raw: bytes, crc_offset: int, what: str) -> None:
    if crc32c_with_zeroed_field(raw, crc_offset) != int.from_bytes(raw[crc_offset : crc_offset + 4], "little"):
        raise MapError(f"has a wrong checksum in the {what}")


def _low(number: int, bits: int) -> int:
    return number & ((1 << bits) - 1)
