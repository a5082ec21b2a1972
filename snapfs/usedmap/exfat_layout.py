"""exFAT on disk: the boot region, FAT entries and directory entries.

Source: "exFAT file system specification" (Microsoft, 2019), sections 3 (boot regions), 4 (FAT), 6
(directory entries) and 7 (each kind of them). All numbers are little endian. Offsets in comments are bytes.
"""

from __future__ import annotations

import struct
from typing import Final

import numpy as np

# 0 jump, 3 name, 11 zeros (where FAT keeps its parameters), 72 length of the volume in sectors, 80 offset
# and 84 length of the FAT and 88 offset of the cluster heap in sectors, 92 clusters, 96 first cluster of
# the root directory, 104 revision, 106 flags, 108 and 109 sizes as powers of two, 110 FATs, 510 mark.
BOOT: Final = struct.Struct("<3s8s53s8xQIIIII4xHHBBB399xH")
BOOT_JUMP: Final = b"\xeb\x76\x90"
BOOT_NAME: Final = b"EXFAT   "
BOOT_MARK: Final = 0xAA55
BOOT_BYTES: Final = 512
SECTOR_SHIFT_RANGE: Final = (9, 12)
CLUSTER_SHIFT_MAX: Final = 25
REVISION_MAJOR: Final = 1
CLUSTER_COUNT_MAX: Final = (1 << 32) - 11

# Eleven sectors are summed up; the twelfth repeats the sum. Flags and percentage change without a new sum.
CHECKSUM_SECTOR: Final = 11
UNSUMMED_BYTES: Final = (106, 107, 112)
# Both boot regions, of twelve sectors each, come before the FAT.
FAT_SECTOR_MIN: Final = 24

ACTIVE_FAT: Final = 0x0001
VOLUME_DIRTY: Final = 0x0002
MEDIA_FAILURE: Final = 0x0004

FIRST_CLUSTER: Final = 2
FAT_ENTRY_BYTES: Final = 4
CHAIN_END: Final = 0xFFFFFFFF

DIRECTORY_ENTRY_BYTES: Final = 32
ENTRY_END: Final = 0x00
ENTRY_BITMAP: Final = 0x81
ENTRY_UPCASE: Final = 0x82
# 1 flags (bit 0: the bitmap of the second FAT), 20 first cluster, 24 length.
BITMAP_ENTRY: Final = struct.Struct("<xB18xIQ")
SECOND_BITMAP: Final = 0x01

# Kinds of entries from here on are in use; those with the second bit belong to the set of an entry before them.
IN_USE: Final = 0x80
IN_USE_SECONDARY: Final = 0xC0
ENTRY_LABEL: Final = 0x83
ENTRY_FILE: Final = 0x85
ENTRY_VOLUME_GUID: Final = 0xA0
ENTRY_STREAM: Final = 0xC0
ENTRY_NAME: Final = 0xC1
ENTRY_VENDOR: Final = 0xE0
ENTRY_VENDOR_CLUSTERS: Final = 0xE1
KNOWN_ENTRIES: Final = (
    ENTRY_BITMAP,
    ENTRY_UPCASE,
    ENTRY_LABEL,
    ENTRY_FILE,
    ENTRY_VOLUME_GUID,
    ENTRY_STREAM,
    ENTRY_NAME,
    ENTRY_VENDOR,
    ENTRY_VENDOR_CLUSTERS,
)
# Of a file: 1 entries that follow in the set, 2 checksum of the set (of all bytes but its own), 4 attributes.
UNSUMMED_IN_SET: Final = (2, 3)
ATTRIBUTE_DIRECTORY: Final = 0x10
# Of a stream, and of a vendor's entry with clusters: 1 flags, 20 first cluster, 24 length.
STREAM: Final = np.dtype(
    {"names": ["flags", "first", "length"], "formats": ["u1", "<u4", "<u8"], "offsets": [1, 20, 24], "itemsize": 32}
)
ALLOCATION_POSSIBLE: Final = 0x01
NO_CHAIN: Final = 0x02
DIRECTORY_BYTES_MAX: Final = 256 << 20
