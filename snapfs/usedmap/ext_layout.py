"""Layout of ext2, ext3 and ext4: facts only.

Source: Linux documentation, "ext4 Data Structures and Algorithms" (Documentation/filesystems/ext4):
the super block, block group descriptors, block and inode bitmaps, meta block groups, bigalloc, checksums,
inodes, block maps, extent trees.
All integers are little endian.
"""

from __future__ import annotations

import numpy as np

SUPERBLOCK_OFFSET = 1024
SUPERBLOCK_BYTES = 1024
MAGIC = 0xEF53
MIN_BLOCK_BYTES = 1024
MAX_LOG_BLOCK_BYTES = 6  # 64 KiB
MAX_LOG_CLUSTER_BYTES = 19  # 512 MiB

# Fields of the superblock that decide about the map: name, type, offset.
_SUPERBLOCK_FIELDS = [
    ("inodes_count", "<u4", 0x0),
    ("blocks_count_lo", "<u4", 0x4),
    ("free_blocks_lo", "<u4", 0xC),
    ("first_data_block", "<u4", 0x14),
    ("log_block_size", "<u4", 0x18),
    ("log_cluster_size", "<u4", 0x1C),
    ("blocks_per_group", "<u4", 0x20),
    ("clusters_per_group", "<u4", 0x24),
    ("inodes_per_group", "<u4", 0x28),
    ("magic", "<u2", 0x38),
    ("state", "<u2", 0x3A),
    ("creator_os", "<u4", 0x48),
    ("rev_level", "<u4", 0x4C),
    ("inode_size", "<u2", 0x58),
    ("compat", "<u4", 0x5C),
    ("incompat", "<u4", 0x60),
    ("ro_compat", "<u4", 0x64),
    ("reserved_gdt_blocks", "<u2", 0xCE),
    ("desc_size", "<u2", 0xFE),
    ("first_meta_bg", "<u4", 0x104),
    ("blocks_count_hi", "<u4", 0x150),
    ("free_blocks_hi", "<u4", 0x158),
    ("mmp_block", "<u8", 0x168),
    ("checksum_type", "u1", 0x175),
    ("backup_group_1", "<u4", 0x24C),
    ("backup_group_2", "<u4", 0x250),
    ("checksum_seed", "<u4", 0x270),
    ("checksum", "<u4", 0x3FC),
]
SUPERBLOCK = np.dtype(
    {
        "names": [name for name, _, _ in _SUPERBLOCK_FIELDS],
        "formats": [kind for _, kind, _ in _SUPERBLOCK_FIELDS],
        "offsets": [offset for _, _, offset in _SUPERBLOCK_FIELDS],
        "itemsize": SUPERBLOCK_BYTES,
    }
)
UUID_OFFSET = 0x68
UUID_BYTES = 16
CHECKSUM_OFFSET = 0x3FC
CHECKSUM_TYPE_CRC32C = 1

STATE_VALID = 0x1
REV_DYNAMIC = 1
REV_0_INODE_BYTES = 128
CREATOR_HURD = 1

COMPAT_HAS_JOURNAL = 0x4
COMPAT_SPARSE_SUPER2 = 0x200
# dir_prealloc, imagic_inodes, has_journal, ext_attr, resize_inode, dir_index, sparse_super2, fast_commit,
# stable_inodes, orphan_file
KNOWN_COMPAT = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x200 | 0x400 | 0x800 | 0x1000

INCOMPAT_RECOVER = 0x4
INCOMPAT_JOURNAL_DEV = 0x8
INCOMPAT_META_BG = 0x10
INCOMPAT_64BIT = 0x80
INCOMPAT_CSUM_SEED = 0x2000
# filetype, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, csum_seed, largedir, inline_data, encrypt, casefold
KNOWN_INCOMPAT = 0x2 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000

RO_COMPAT_SPARSE_SUPER = 0x1
RO_COMPAT_GDT_CSUM = 0x10
RO_COMPAT_BIGALLOC = 0x200
RO_COMPAT_METADATA_CSUM = 0x400
# sparse_super, large_file, huge_file, gdt_csum, dir_nlink, extra_isize, quota, bigalloc, metadata_csum,
# read-only, project, verity, orphan_present
KNOWN_RO_COMPAT = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x200 | 0x400 | 0x1000 | 0x2000 | 0x8000 | 0x10000

# Group descriptors: 32 bytes, or desc_size bytes with the high halves under the 64bit feature.
DESCRIPTOR_BYTES = 32
DESCRIPTOR_64_BYTES = 64
_DESCRIPTOR_FIELDS = [
    ("block_bitmap_lo", "<u4", 0x0),
    ("inode_bitmap_lo", "<u4", 0x4),
    ("inode_table_lo", "<u4", 0x8),
    ("free_lo", "<u2", 0xC),
    ("free_inodes_lo", "<u2", 0xE),
    ("flags", "<u2", 0x12),
    ("bitmap_checksum_lo", "<u2", 0x18),
    ("inodes_unused_lo", "<u2", 0x1C),
    ("checksum", "<u2", 0x1E),
]
_DESCRIPTOR_64_FIELDS = [
    ("block_bitmap_hi", "<u4", 0x20),
    ("inode_bitmap_hi", "<u4", 0x24),
    ("inode_table_hi", "<u4", 0x28),
    ("free_hi", "<u2", 0x2C),
    ("free_inodes_hi", "<u2", 0x2E),
    ("inodes_unused_hi", "<u2", 0x32),
    ("bitmap_checksum_hi", "<u2", 0x38),
]
DESCRIPTOR_CHECKSUM_OFFSET = 0x1E
FLAG_INODE_UNINIT = 0x1
FLAG_BLOCK_UNINIT = 0x2
FLAG_INODES_ZEROED = 0x4

# Inodes. `map` is the block map, the root of an extent tree, a short symbolic link or a device number.
_INODE_FIELDS = [
    ("mode", "<u2", 0x0),
    ("size_lo", "<u4", 0x4),
    ("links", "<u2", 0x1A),
    ("sectors_lo", "<u4", 0x1C),
    ("flags", "<u4", 0x20),
    ("translator", "<u4", 0x24),  # a block of its own, on filesystems of the Hurd only
    ("map", "V60", 0x28),
    ("attributes_lo", "<u4", 0x68),
    ("size_hi", "<u4", 0x6C),
    ("sectors_hi", "<u2", 0x74),
    ("attributes_hi", "<u2", 0x76),
]
FORMAT_MASK = 0xF000
FORMAT_REGULAR = 0x8000
FORMAT_SYMLINK = 0xA000
FORMATS_WITHOUT_BLOCKS = (0x1000, 0x2000, 0x6000, 0xC000)  # FIFO, character and block device, socket
INODE_FLAG_EXTENTS = 0x80000
INODE_FLAG_INLINE_DATA = 0x10000000
SECTOR_BYTES = 512

# A block map: 12 blocks, then one block of pointers, one of pointers to such blocks, one of pointers to those.
DIRECT_POINTERS = 12
INDIRECT_LEVELS = 3
POINTER = np.dtype("<u4")

# A node of an extent tree: a header, then entries of the same size.
EXTENT_HEADER = np.dtype(
    [("magic", "<u2"), ("entries", "<u2"), ("max", "<u2"), ("depth", "<u2"), ("generation", "<u4")]
)
EXTENT_MAGIC = 0xF30A
EXTENT_MAX_DEPTH = 5
EXTENT = np.dtype([("logical", "<u4"), ("count", "<u2"), ("start_hi", "<u2"), ("start_lo", "<u4")])
EXTENT_INDEX = np.dtype([("logical", "<u4"), ("child_lo", "<u4"), ("child_hi", "<u2"), ("unused", "<u2")])
EXTENT_MAX_INITIALISED = 0x8000  # above it: that much less, allocated but not written


def descriptor_dtype(desc_size: int) -> np.dtype[np.void]:
    """One group descriptor of `desc_size` bytes; fields ending in _hi exist from 64 bytes on."""
    return _dtype(_DESCRIPTOR_FIELDS + (_DESCRIPTOR_64_FIELDS if desc_size >= DESCRIPTOR_64_BYTES else []), desc_size)


def inode_dtype(inode_bytes: int) -> np.dtype[np.void]:
    """One inode of a table whose inodes have `inode_bytes`."""
    return _dtype(_INODE_FIELDS, inode_bytes)


def _dtype(fields: list[tuple[str, str, int]], size: int) -> np.dtype[np.void]:
    return np.dtype(
        {
            "names": [name for name, _, _ in fields],
            "formats": [kind for _, kind, _ in fields],
            "offsets": [offset for _, _, offset in fields],
            "itemsize": size,
        }
    )
