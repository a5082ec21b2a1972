"""The map of btrfs, from its extent tree.

btrfs never overwrites what the last commit refers to, so the state on disk is consistent at any instant, mounted or
not. Trusted only when all of this holds:
1. one device, chunks kept once or twice on it (single, DUP), every feature known, no flag of trouble;
2. no copy of the superblock is later than the first;
   no log tree: after an fsync there is one, and what it refers to is not in the extent tree yet;
3. every node on the way is verified (see `btrfs_tree`), each extent lies inside a chunk, after the one before it,
   and all extents sum up to the bytes that the superblock calls used.

Used: each extent in every copy, the first MiB, the surroundings of the superblock copies, and whatever lies beyond
the end of the device as the filesystem knows it. Space that no chunk covers is free. The free-space tree is not
asked: it may hold entries of block groups that are gone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from bitarray import bitarray
from bitarray.util import ones

from snapfs.usedmap import btrfs_layout as layout
from snapfs.usedmap.btrfs_tree import Chunk, ChunkMap, Leaf, Numbers, Root, TreeReader, check_checksum
from snapfs.usedmap.result import FreeMap, MapError
from snapfs.usedmap.source import Source


@dataclass(frozen=True)
class _Superblock:
    fields: dict[str, int]
    fsid: bytes
    chunk_array: bytes

    def __getitem__(self, name: str) -> int:
        return self.fields[name]


def read_free_map(source: Source, *, frozen_by_us: bool = False) -> FreeMap:
    """The free sectors; `MapError` when they cannot be trusted. Being frozen makes no difference to btrfs."""
    superblock = _read_superblock(source)
    _check_copies(source, superblock)
    reader = TreeReader(source, superblock["node_bytes"], superblock["checksum_type"], superblock.fsid)
    chunks = _read_chunks(reader, superblock)
    starts, lengths = _read_extents(reader, chunks, superblock)
    if int(lengths.sum()) != superblock["bytes_used"]:
        raise MapError("has extents that do not sum up to what it calls used")
    free = ones(superblock["device_bytes"] // superblock["sector_bytes"], "little")
    _mark_reserved(superblock, free)
    _mark_extents(chunks, starts, lengths, superblock["sector_bytes"], free)
    return FreeMap(superblock["sector_bytes"], 0, free)


def device_count(source: Source) -> int:
    """On how many devices the filesystem lies; `MapError` when it does not say."""
    return _superblock_fields(source.read(layout.SUPERBLOCK_OFFSETS[0], layout.SUPERBLOCK_BYTES))["num_devices"]


def _read_superblock(source: Source) -> _Superblock:
    raw = source.read(layout.SUPERBLOCK_OFFSETS[0], layout.SUPERBLOCK_BYTES)
    if raw[layout.MAGIC_OFFSET :][: len(layout.MAGIC)] != layout.MAGIC:
        raise MapError("has no superblock")
    fields = _superblock_fields(raw)
    check_checksum(raw, fields["checksum_type"], "superblock")
    _check_features(fields)
    _check_sizes(fields, source.size_bytes)
    has_metadata_uuid = fields["incompat"] & layout.INCOMPAT_METADATA_UUID
    fsid_offset = layout.METADATA_UUID_OFFSET if has_metadata_uuid else layout.FSID_OFFSET
    return _Superblock(
        fields,
        raw[fsid_offset : fsid_offset + layout.UUID_BYTES],
        raw[layout.CHUNK_ARRAY_OFFSET :][: fields["chunk_array_bytes"]],
    )


def _superblock_fields(raw: bytes) -> dict[str, int]:
    return {
        name: int(struct.unpack_from(form, raw, offset)[0])
        for name, (form, offset) in layout.SUPERBLOCK_FIELDS.items()
    }


def _check_copies(source: Source, superblock: _Superblock) -> None:
    """A later copy means that a write of the first superblock was lost: its trees may be overwritten by now."""
    for offset in layout.SUPERBLOCK_OFFSETS[1:]:
        if offset + layout.SUPERBLOCK_BYTES > superblock["device_bytes"]:
            return
        raw = source.read(offset, layout.SUPERBLOCK_BYTES)
        copy = _superblock_fields(raw)
        is_copy = raw[layout.MAGIC_OFFSET :].startswith(layout.MAGIC) and copy["own_offset"] == offset
        if is_copy and superblock.fsid in raw and copy["generation"] > superblock["generation"]:
            raise MapError("has a copy of its superblock that is later than the first")


def _check_features(fields: dict[str, int]) -> None:
    if fields["log_root"]:
        raise MapError("has a log tree, left by an fsync, that its other trees do not know of yet")
    if fields["num_devices"] != 1:
        raise MapError("extends over several devices")
    if fields["flags"] & ~layout.FLAG_WRITTEN:
        raise MapError(f"is in a special state (flags 0x{fields['flags']:x})")
    for name, known in (
        ("compat", 0),
        ("compat_ro", layout.KNOWN_COMPAT_RO),
        ("incompat", layout.KNOWN_INCOMPAT),
    ):
        if unknown := fields[name] & ~known:
            raise MapError(f"has unknown features ({name} 0x{unknown:x})")


def _check_sizes(fields: dict[str, int], size_bytes: int) -> None:
    sector, node = fields["sector_bytes"], fields["node_bytes"]
    if sector & (sector - 1) or not layout.MIN_SECTOR_BYTES <= sector <= layout.MAX_SECTOR_BYTES:
        raise MapError("has a senseless sector size")
    if node & (node - 1) or not sector <= node <= layout.MAX_NODE_BYTES:
        raise MapError("has a senseless node size")
    if max(fields["root_level"], fields["chunk_root_level"]) >= layout.MAX_LEVELS:
        raise MapError("has trees of a senseless height")
    if fields["own_offset"] != layout.SUPERBLOCK_OFFSETS[0]:
        raise MapError("has a misplaced superblock")
    if not 0 < fields["device_bytes"] <= size_bytes:
        raise MapError(f"claims {fields['device_bytes']} bytes but has a place of {size_bytes}")
    if fields["chunk_array_bytes"] > layout.CHUNK_ARRAY_MAX_BYTES:
        raise MapError("has a broken list of system chunks")


def _read_chunks(reader: TreeReader, superblock: _Superblock) -> ChunkMap:
    system = ChunkMap(_system_chunks(superblock))
    root = Root(
        layout.CHUNK_TREE,
        superblock["chunk_root"],
        superblock["chunk_root_level"],
        superblock["chunk_root_generation"],
    )
    chunks = []
    for leaf in reader.leaves(system, root):
        for index in np.flatnonzero(leaf.items["type"] == layout.TYPE_CHUNK_ITEM).tolist():
            start = int(leaf.items[index]["offset"])
            chunks.append(_parse_chunk(start, leaf.data(index), superblock))
    _check_stripes(chunks)
    return ChunkMap(chunks)


def _system_chunks(superblock: _Superblock) -> list[Chunk]:
    """The chunks that hold the chunk tree; kept in the superblock so that the tree can be found."""
    array, at = superblock.chunk_array, 0
    chunks = []
    while at < len(array):
        if at + layout.KEY.size + layout.CHUNK_ITEM.size > len(array):
            raise MapError("has a broken list of system chunks")
        _, kind, start = layout.KEY.unpack_from(array, at)
        if kind != layout.TYPE_CHUNK_ITEM:
            raise MapError("has a broken list of system chunks")
        at += layout.KEY.size
        chunks.append(_parse_chunk(start, array[at:], superblock))
        at += layout.CHUNK_ITEM.size + len(chunks[-1].stripes) * layout.STRIPE.size
    return chunks


def _parse_chunk(start: int, item: bytes, superblock: _Superblock) -> Chunk:
    if len(item) < layout.CHUNK_ITEM.size:
        raise MapError("has a broken chunk")
    length, kind, count = layout.CHUNK_ITEM.unpack_from(item)
    expected = {layout.PROFILE_SINGLE: 1, layout.PROFILE_DUP: 2}.get(kind & layout.PROFILE_MASK)
    if expected is None:
        raise MapError("has chunks of a RAID profile")
    if count != expected or len(item) < layout.CHUNK_ITEM.size + count * layout.STRIPE.size:
        raise MapError("has a broken chunk")
    sector = superblock["sector_bytes"]
    stripes = []
    for index in range(count):
        device, offset = layout.STRIPE.unpack_from(item, layout.CHUNK_ITEM.size + index * layout.STRIPE.size)
        if device != superblock["device_id"]:
            raise MapError("has a chunk on another device")
        if offset % sector or offset + length > superblock["device_bytes"]:
            raise MapError("has a chunk outside its device")
        stripes.append(offset)
    if not length or start % sector or length % sector or start + length >= 1 << 63:
        raise MapError("has a broken chunk")
    return Chunk(start, length, tuple(stripes))


def _check_stripes(chunks: list[Chunk]) -> None:
    """No two chunks may share a place on the device."""
    ends = 0
    for start, length in sorted((stripe, chunk.length) for chunk in chunks for stripe in chunk.stripes):
        if start < ends:
            raise MapError("has chunks that overlap on the device")
        ends = start + length


def _read_extents(reader: TreeReader, chunks: ChunkMap, superblock: _Superblock) -> tuple[Numbers, Numbers]:
    """Logical start and length of every extent, data and metadata."""
    root = Root(layout.ROOT_TREE, superblock["root"], superblock["root_level"], superblock["generation"])
    starts, lengths = [], []
    for leaf in reader.leaves(chunks, _extent_root(reader.leaves(chunks, root))):
        kinds = leaf.items["type"]
        is_metadata = kinds == layout.TYPE_METADATA_ITEM
        wanted = is_metadata | (kinds == layout.TYPE_EXTENT_ITEM)
        size = np.where(is_metadata, np.uint64(superblock["node_bytes"]), leaf.items["offset"])
        starts.append(leaf.items["objectid"][wanted])
        lengths.append(size[wanted])
    return _checked_extents(np.concatenate(starts), np.concatenate(lengths), superblock["sector_bytes"])


def _checked_extents(starts: Numbers, lengths: Numbers, sector_bytes: int) -> tuple[Numbers, Numbers]:
    limit = np.uint64(1 << 62)
    if not len(starts) or (starts >= limit).any() or (lengths >= limit).any():
        raise MapError("has senseless extents")
    starts, lengths = starts.astype(np.int64), lengths.astype(np.int64)
    if (starts % sector_bytes).any() or (lengths % sector_bytes).any() or not lengths.all():
        raise MapError("has extents that are not made of whole sectors")
    if (starts[1:] < starts[:-1] + lengths[:-1]).any():
        raise MapError("has extents that overlap")
    return starts, lengths


def _extent_root(leaves: Iterable[Leaf]) -> Root:
    for leaf in leaves:
        found = (leaf.items["objectid"] == layout.EXTENT_TREE) & (leaf.items["type"] == layout.TYPE_ROOT_ITEM)
        for index in np.flatnonzero(found).tolist():
            item = leaf.data(index)
            if len(item) < layout.ROOT_ITEM_MIN_BYTES:
                raise MapError("has a broken root of its extent tree")
            (generation,) = struct.unpack_from("<Q", item, layout.ROOT_ITEM_GENERATION_OFFSET)
            (address,) = struct.unpack_from("<Q", item, layout.ROOT_ITEM_BLOCK_OFFSET)
            level = item[layout.ROOT_ITEM_LEVEL_OFFSET]
            if level >= layout.MAX_LEVELS or address >= 1 << 62:
                raise MapError("has a broken root of its extent tree")
            return Root(layout.EXTENT_TREE, address, level, generation)
    raise MapError("has no extent tree")


def _mark_reserved(superblock: _Superblock, free: bitarray) -> None:
    sector = superblock["sector_bytes"]
    free[: layout.RESERVED_START_BYTES // sector] = 0
    for offset in layout.SUPERBLOCK_OFFSETS:
        free[offset // sector : (offset + layout.SUPERBLOCK_PLACE_BYTES) // sector] = 0


def _mark_extents(chunks: ChunkMap, starts: Numbers, lengths: Numbers, sector_bytes: int, free: bitarray) -> None:
    numbers = chunks.chunk_numbers(starts, lengths)
    within = starts - chunks.starts[numbers]
    copies = max(len(chunk.stripes) for chunk in chunks.chunks)
    for copy in range(copies):
        # A chunk that is kept once stands in for its own second copy.
        places = np.array([chunk.stripes[min(copy, len(chunk.stripes) - 1)] for chunk in chunks.chunks], np.int64)
        firsts = (places[numbers] + within) // sector_bytes
        lasts = firsts + lengths // sector_bytes
        for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
            free[first:last] = 0
