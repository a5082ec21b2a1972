"""FAT12, FAT16 and FAT32 on disk: the boot sector and the entries of the file allocation table.

Sources: "FAT: General Overview of On-Disk Format", version 1.03 (Microsoft, 2000) and ECMA-107; the state
byte that Linux and Windows NT keep in the boot sector: dosfstools, manual of fsck.fat.
All numbers are little endian. Offsets in comments are bytes from the start of the structure.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np

# 11 bytes per sector, 13 sectors per cluster, 14 reserved sectors, 16 number of FATs, 17 entries of the
# root directory, 19 sectors (16 bits), 21 medium, 22 sectors per FAT (16 bits), 32 sectors (32 bits),
# 36 sectors per FAT (FAT32), 40 flags, 42 version, 44 first cluster of the root directory, 50 backup boot
# sector, 510 mark.
BOOT: Final = struct.Struct("<11xHBHBHHBH8xIIHHI2xH458xH")
BOOT_MARK: Final = 0xAA55
BOOT_BYTES: Final = 512
# The part of the boot sector that says where things are; a backup must agree in it.
GEOMETRY_BYTES: Final = slice(11, 52)

SECTOR_BYTES: Final = (512, 1024, 2048, 4096)
SECTORS_PER_CLUSTER: Final = (1, 2, 4, 8, 16, 32, 64, 128)
FAT_COUNT_MAX: Final = 4
DIRECTORY_ENTRY_BYTES: Final = 32

# FAT32 flags: set when only one FAT is kept up to date.
NOT_MIRRORED: Final = 0x0080

# The state byte: bit 0 mounted or not unmounted, bit 1 errors were met.
STATE_OFFSET_FAT16: Final = 37
STATE_OFFSET_FAT32: Final = 65
STATE_NOT_CLEAN: Final = 0x03


@dataclass(frozen=True)
class FatKind:
    """One width of FAT entries.

    `clean` and `no_errors` are the bits of entry 1 that are *set* when all is well (0: it has none).
    """

    name: str
    bits: int
    mask: int
    clusters_max: int
    clean: int
    no_errors: int
    state_offset: int


# 4085 and 65525 clusters are where the next width begins.
FAT12: Final = FatKind("FAT12", 12, 0xFFF, 4084, 0, 0, STATE_OFFSET_FAT16)
FAT16: Final = FatKind("FAT16", 16, 0xFFFF, 65524, 0x8000, 0x4000, STATE_OFFSET_FAT16)
FAT32: Final = FatKind("FAT32", 32, 0x0FFFFFFF, 0x0FFFFFF5, 0x08000000, 0x04000000, STATE_OFFSET_FAT32)

# Cluster numbers begin here; entries 0 and 1 hold the medium and the state.
FIRST_CLUSTER: Final = 2
FREE: Final = 0
# Entries from mask - this on mean "bad" (first) or "end of the chain" (the rest).
SPECIAL_BELOW_MASK: Final = 8

# --- directory entries -------------------------------------------------------------------------------
# `cluster_high` and `cluster_low` are the first cluster; the upper half counts on FAT32 only.
DIRECTORY_ENTRY: Final = np.dtype(
    {
        "names": ["name", "attributes", "cluster_high", "cluster_low"],
        "formats": ["S11", "u1", "<u2", "<u2"],
        "offsets": [0, 11, 20, 26],
        "itemsize": DIRECTORY_ENTRY_BYTES,
    }
)
DIRECTORY_END: Final = 0x00
ENTRY_DELETED: Final = 0xE5
# A volume label, or with all of read-only, hidden and system a piece of a long name.
ATTRIBUTE_LABEL: Final = 0x08
ATTRIBUTE_DIRECTORY: Final = 0x10
# The first entry of every directory but the root is the directory itself.
DOT_NAME: Final = b".          "
