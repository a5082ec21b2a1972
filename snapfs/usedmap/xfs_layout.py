"""Layout of XFS versions 4 and 5: facts only.

Source: "XFS Algorithms & Data Structures" (xfs.org / kernel.org xfs-documentation): superblocks, allocation group
headers, short format B+trees, the journaling log.
All integers are big endian, except checksums and the inside of log items of the machine that wrote them.
"""

from __future__ import annotations

import struct

import numpy as np

SUPERBLOCK_MAGIC = b"XFSB"
AGF_MAGIC = b"XAGF"
BNOBT_MAGIC = b"AB3B"
BNOBT_MAGIC_4 = b"ABTB"
CNTBT_MAGIC_4 = b"ABTC"  # the same free extents, by their length
DISK_SECTOR_BYTES = 512  # the unit of the log and of block numbers in tree blocks, whatever the sector size

MIN_SUPERBLOCK_BYTES = 512
SUPERBLOCK_FIELDS: dict[str, tuple[str, int]] = {
    "block_bytes": (">I", 4),
    "data_blocks": (">Q", 8),
    "realtime_blocks": (">Q", 16),
    "log_start": (">Q", 48),
    "ag_blocks": (">I", 84),
    "ag_count": (">I", 88),
    "log_blocks": (">I", 96),
    "version": (">H", 100),
    "sector_bytes": (">H", 102),
    "ag_block_log": (">B", 124),
    "in_progress": (">B", 126),
    "free_blocks": (">Q", 144),
    "features2": (">I", 200),
    "ro_compat": (">I", 212),
    "incompat": (">I", 216),
    "log_incompat": (">I", 220),
}
UUID_OFFSET = 32
META_UUID_OFFSET = 248
UUID_BYTES = 16
SUPERBLOCK_CRC_OFFSET = 224
VERSION_NUMBER_MASK = 0xF
VERSION_4 = 4
VERSION_5 = 5
# What every copy of the superblock says alike.
GEOMETRY_FIELDS = ("block_bytes", "data_blocks", "log_start", "ag_blocks", "ag_count", "log_blocks", "ag_block_log")
# attributes, 32-bit link counts, quota, alignment, stripes, log of version 2, sector size, unwritten extents,
# directories of version 2, names without case, more features
KNOWN_VERSION_4 = 0x10 | 0x20 | 0x40 | 0x80 | 0x100 | 0x400 | 0x800 | 0x1000 | 0x2000 | 0x4000 | 0x8000
VERSION_4_MORE_FEATURES = 0x8000
FEATURE2_LAZY_COUNTERS = 0x2
# lazy counters, attributes of version 2, 32-bit project numbers, file types in directories
KNOWN_FEATURES2 = 0x2 | 0x8 | 0x80 | 0x200

# finobt, rmapbt, reflink, inobtcount
KNOWN_RO_COMPAT = 0x1 | 0x2 | 0x4 | 0x8
INCOMPAT_META_UUID = 0x4
INCOMPAT_NEEDS_REPAIR = 0x10
# ftype, sparse inodes, meta_uuid, bigtime, nrext64, exchange-range, parent
KNOWN_INCOMPAT = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80
# logged extended attributes: their intents would be seen in the log
KNOWN_LOG_INCOMPAT = 0x1

MIN_BLOCK_BYTES = 1024
MAX_BLOCK_BYTES = 65536
MAX_AG_BYTES = 1 << 40
AG_HEADER_SECTORS = 4

# Sector 1 of each allocation group.
# magic, version, own number, length, roots of the trees by block number and by length, their levels,
# reserved blocks, free blocks, blocks of the trees but their roots
AGF = struct.Struct(">4sIIIII4xII12xII4xI")
AGF_UUID_OFFSET = 64
AGF_CRC_OFFSET = 216
AGF_VERSION = 1

# magic, level, records, left, right, disk block, lsn, uuid, owner
BTREE_HEADER = struct.Struct(">4sHHIIQQ16sI")
BTREE_HEADER_BYTES = 56
BTREE_HEADER_4 = struct.Struct(">4sHHII")
BTREE_CRC_OFFSET = 52
BTREE_NO_SIBLING = 0xFFFFFFFF
BTREE_RECORD = np.dtype([("start", ">u4"), ("count", ">u4")])
BTREE_KEY_BYTES = 8
BTREE_POINTER_BYTES = 4
BTREE_MAX_LEVELS = 9

# The log: records of a header, headers with more cycle words, and a payload of operations.
LOG_HEADER_MAGIC = 0xFEEDBABE
LOG_VERSION_1 = 1  # one header sector a record; only with version 4 of the filesystem
LOG_VERSION_2 = 2
# magic, cycle, version, payload bytes, lsn, tail lsn, previous block, operations (crc apart)
LOG_HEADER = struct.Struct(">IIIIQQ4xII")
LOG_HEADER_CYCLES_OFFSET = 44
LOG_HEADER_CYCLES = 64
LOG_HEADER_UUID_OFFSET = 304
LOG_HEADER_SIZE_OFFSET = 320  # bytes of the log buffer: how many header sectors there are
LOG_HEADER_CRC_OFFSET = 32
LOG_HEADER_CHECKED_BYTES = 328
LOG_EXTENDED_HEADER_CHECKED_BYTES = 260
LOG_EXTENDED_CYCLES_OFFSET = 4
LOG_CYCLE_SIZE_BYTES = 32768  # payload whose cycle words one header sector holds
LOG_MAX_BUFFER_BYTES = 262144
LOG_MAX_BUFFERS = 8

LOG_NO_BLOCK = 0xFFFFFFFF  # as the record before this one: it is the first

# transaction id, length, client, flags
LOG_OPERATION = struct.Struct(">IIBB2x")
LOG_CLIENT_TRANSACTION = 0x69
LOG_CLIENT_LOG = 0xAA
LOG_START = 0x01
LOG_COMMIT = 0x02
LOG_UNMOUNT = 0x20

# In the byte order of the machine that wrote the log: magic; then an item of a buffer:
# type, number of regions, flags, length in sectors, disk block
LOG_TRANSACTION_MAGIC = 0x5452414E
LOG_TRANSACTION_HEADER_BYTES = 16
LOG_BUFFER_ITEM = struct.Struct("<HHHHQ")
LOG_BUFFER_ITEM_TYPE = 0x123C
LOG_SUPERBLOCK_DISK_BLOCK = 0
