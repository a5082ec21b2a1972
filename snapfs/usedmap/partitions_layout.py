"""Layout of partition tables: facts only.

MBR: the classical DOS table; an extended partition is a chain of boot records,
     each with one partition and one link.
GPT: UEFI specification 2.10, chapter 5 (GUID Partition Table Disk Layout).
All integers are little endian; addresses count logical sectors (512 or 4096 bytes).
"""

from __future__ import annotations

import struct

SECTOR_SIZES_BYTES = (512, 4096)

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
GPT_OWN_SECTOR_FIELD = 5

# type guid, partition guid, first sector, last sector (inclusive), attributes, name (UTF-16)
GPT_ENTRY = struct.Struct("<16s16sQQQ72s")
GPT_TYPE_UNUSED = bytes(16)

# What a partition's type says when a filesystem is not, or not alone, what is in it: the start of it may look like a
# plain filesystem (a mirror's does, and so does whatever was there before) while its blocks belong to a volume
# that is laid out otherwise. Each continues the sentence "its type says that it is ...".
_LDM, _LVM, _MD = "a piece of a Windows dynamic disk", "a physical volume of LVM", "a member of an MD array"
_FT = "a member of a Windows NT fault-tolerant set"
_VMFS, _ZFS = "a piece of a VMware datastore", "a member of a ZFS pool"
_SPACES = "a piece of a Windows Storage Spaces pool"
_SLICES, _ENCRYPTED = "divided into slices of its own", "encrypted"

MBR_PIECE_TYPES: dict[int, str] = {
    0x42: _LDM,
    0x81: _SLICES,
    0x86: _FT,
    0x87: _FT,
    0x8B: _FT,
    0x8C: _FT,
    0x8E: _LVM,
    0xA5: _SLICES,
    0xA6: _SLICES,
    0xA9: _SLICES,
    0xBF: _SLICES,
    0xC6: _FT,
    0xC7: _FT,
    0xCB: _FT,
    0xCC: _FT,
    0xD7: _SPACES,
    0xE7: _SPACES,
    0xE8: _ENCRYPTED,
    0xFB: _VMFS,
    0xFC: _VMFS,
    0xFD: _MD,
    0xFE: _LVM,
}

GPT_PIECE_TYPES: dict[str, str] = {
    "af9b60a0-1431-4f62-bc68-3311714a69ad": _LDM,
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3": "the database of a Windows dynamic disk",
    "e75caf8f-f680-4cee-afa3-b001e56efc2d": _SPACES,
    "e7addcb4-dc34-4539-9a76-ebbd07be6f7e": _SPACES,
    "558d43c5-a1ac-43c0-aac8-d1472b2923d1": "a log of Windows Storage Replica",
    "e6d6d379-f507-44c2-a23c-238f2a3df928": _LVM,
    "a19d880f-05fc-4d3b-a006-743f0f84911e": _MD,
    "ca7d7ccb-63ed-4c53-861c-1742536059cc": _ENCRYPTED,
    "7ffec5c9-2d00-49b7-8941-3ea10a5586b7": _ENCRYPTED,
    "6a898cc3-1dd2-11b2-99a6-080020736631": _ZFS,
    "516e7cba-6ecf-11d6-8ff8-00022d09712b": _ZFS,
    "516e7cb4-6ecf-11d6-8ff8-00022d09712b": _SLICES,
    "516e7cb8-6ecf-11d6-8ff8-00022d09712b": "a member of a Vinum volume",
    "824cc7a0-36a8-11e3-890a-952519ad3f61": _SLICES,
    "49f48daa-b10e-11dc-b99b-0019d1879648": "a member of a NetBSD RAID",
    "2db519c4-b10f-11dc-b99b-0019d1879648": "a member of a NetBSD concatenation",
    "2db519ec-b10f-11dc-b99b-0019d1879648": _ENCRYPTED,
    "7c3457ef-0000-11aa-aa11-00306543ecac": "a container of APFS",
    "53746f72-6167-11aa-aa11-00306543ecac": "a member of a CoreStorage group",
    "52414944-0000-11aa-aa11-00306543ecac": "a member of an Apple RAID",
    "52414944-5f4f-11aa-aa11-00306543ecac": "a member of an Apple RAID",
    "aa31e02a-400f-11db-9590-000c2911d1b8": _VMFS,
    "9d275380-40ad-11db-bf97-000c2911d1b8": _VMFS,
    "9198effc-31c0-11db-8f78-000c2911d1b8": _VMFS,
    "381cfccc-7288-11e0-92ee-000c2911d0b2": "a disk of VMware vSAN",
    "37affc90-ef7d-4e96-91c3-2d7ae055b174": "a disk of IBM GPFS",
    "75894c1e-3aeb-11d3-b7c1-7b03a0000000": "a volume of HP-UX",
}
