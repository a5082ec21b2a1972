"""Layout of btrfs: facts only.

Source: btrfs documentation, "On-disk Format" (btrfs.readthedocs.io, dev/On-disk-format): superblock, tree nodes,
chunk items, extent items. All integers are little endian.
"""

from __future__ import annotations

import struct

import numpy as np

SUPERBLOCK_OFFSETS = (64 << 10, 64 << 20, 256 << 30)
SUPERBLOCK_BYTES = 4096
SUPERBLOCK_PLACE_BYTES = 64 << 10  # the allocator leaves a whole stripe free around each copy
RESERVED_START_BYTES = 1 << 20
MAGIC = b"_BHRfS_M"
CHECKSUM_BYTES = 32

SUPERBLOCK_FIELDS: dict[str, tuple[str, int]] = {
    "own_offset": ("<Q", 48),
    "flags": ("<Q", 56),
    "generation": ("<Q", 72),
    "root": ("<Q", 80),
    "chunk_root": ("<Q", 88),
    "log_root": ("<Q", 96),
    "total_bytes": ("<Q", 112),
    "bytes_used": ("<Q", 120),
    "num_devices": ("<Q", 136),
    "sector_bytes": ("<I", 144),
    "node_bytes": ("<I", 148),
    "chunk_array_bytes": ("<I", 160),
    "chunk_root_generation": ("<Q", 164),
    "compat": ("<Q", 172),
    "compat_ro": ("<Q", 180),
    "incompat": ("<Q", 188),
    "checksum_type": ("<H", 196),
    "root_level": ("<B", 198),
    "chunk_root_level": ("<B", 199),
    "device_id": ("<Q", 201),
    "device_bytes": ("<Q", 209),
}
MAGIC_OFFSET = 64
FSID_OFFSET = 32
METADATA_UUID_OFFSET = 571
UUID_BYTES = 16
CHUNK_ARRAY_OFFSET = 811
CHUNK_ARRAY_MAX_BYTES = 2048

FLAG_WRITTEN = 0x1
# free-space tree, free-space tree valid, verity, block group tree
KNOWN_COMPAT_RO = 0x1 | 0x2 | 0x4 | 0x8
INCOMPAT_METADATA_UUID = 0x400
# mixed backref, default subvolume, mixed groups, lzo, zstd, big metadata, extended iref, skinny metadata,
# no holes, metadata uuid
KNOWN_INCOMPAT = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | 0x400

MIN_SECTOR_BYTES, MAX_SECTOR_BYTES = 4096, 65536
MAX_NODE_BYTES = 65536
MAX_LEVELS = 8

CHECKSUM_CRC32C, CHECKSUM_XXHASH64, CHECKSUM_SHA256, CHECKSUM_BLAKE2B = range(4)

# checksum apart: filesystem, own logical address, generation, owner, items, level
NODE_HEADER = struct.Struct("<32x16sQ8x16xQQIB")
NODE_HEADER_BYTES = 101
KEY = struct.Struct("<QBQ")
KEY_DTYPE = [("objectid", "<u8"), ("type", "u1"), ("offset", "<u8")]
LEAF_ITEM = np.dtype([*KEY_DTYPE, ("data_offset", "<u4"), ("data_bytes", "<u4")])
NODE_POINTER = np.dtype([*KEY_DTYPE, ("block", "<u8"), ("generation", "<u8")])

ROOT_TREE, EXTENT_TREE, CHUNK_TREE = 1, 2, 3
TYPE_ROOT_ITEM = 132
TYPE_EXTENT_ITEM = 168
TYPE_METADATA_ITEM = 169
TYPE_CHUNK_ITEM = 228

# in a root item: generation of the tree, logical address, level
ROOT_ITEM_GENERATION_OFFSET = 160
ROOT_ITEM_BLOCK_OFFSET = 176
ROOT_ITEM_LEVEL_OFFSET = 238
ROOT_ITEM_MIN_BYTES = 239

# length, type and profile, number of stripes; then stripes of device, offset, uuid
CHUNK_ITEM = struct.Struct("<Q8x8xQ4x4x4xH2x")
STRIPE = struct.Struct("<QQ16x")
PROFILE_MASK = 0x7F8
PROFILE_SINGLE = 0
PROFILE_DUP = 0x20
