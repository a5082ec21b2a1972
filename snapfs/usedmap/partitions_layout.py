"""Layout of partition tables: facts only.

MBR: the classical DOS table; an extended partition is a chain of boot records,
     each with one partition and one link.
GPT: UEFI specification 2.10, chapter 5 (GUID Partition Table Disk Layout).
All integers are little endian; addresses count logical sectors (512 or 4096 bytes).
"""

from __future__ import annotations

import struct

MBR_BYTES = 512
MBR_SIGNATURE_OFFSET = 510
MBR_SIGNATURE = b"\x55\xaa"
MBR_ENTRIES_OFFSET = 446
MBR_ENTRY_COUNT = 4

# boot flag, (start CHS), type, (end CHS), first sector, number of sectors
MBR_ENTRY = struct.Struct("<B3xB3xII")
MBR_BOOT_FLAGS = (0x00, 0x80)

MBR_TYPE_EMPTY = 0x00
MBR_TYPE_PROTECTIVE = 0xEE
MBR_TYPES_EXTENDED = (0x05, 0x0F, 0x85)

FIRST_LOGICAL_NUMBER = 5

GPT_MAGIC = b"EFI PART"
GPT_HEADER_SECTOR = 1

# magic, revision, header bytes, crc, reserved, own sector, other header's sector, first and last usable
# sector, disk guid, first sector of the entries, number of entries, bytes per entry, crc of the entries
GPT_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
GPT_CRC_OFFSET = 16

# type guid, partition guid, first sector, last sector (inclusive), attributes, name (UTF-16)
GPT_ENTRY = struct.Struct("<16s16sQQQ72s")
GPT_TYPE_UNUSED = bytes(16)
