"""NTFS on disk: the boot sector, MFT records, attributes, run lists and the restart pages of $LogFile.

Sources: "NTFS Documentation" of the Linux-NTFS project (Russon, Fledel), chapters Files and Concepts;
the volume flags and log versions of later Windows: "NTFS today" (dfir.ru, 2019);
shadow copies: "Volume Shadow Snapshot (VSS) format" of the libvshadow project (Metz).
All numbers are little endian. Offsets in comments are bytes from the start of the structure.
"""

from __future__ import annotations

import struct
from typing import Final
from uuid import UUID

# --- boot sector -------------------------------------------------------------------------------------
# 3 name, 11 bytes per sector, 13 sectors per cluster, 40 sectors of the volume (without the backup boot
# sector that follows them), 48 first cluster of $MFT, 56 of $MFTMirr, 64 size of an MFT record, 510 mark.
BOOT: Final = struct.Struct("<3x8sHB26xQQQb445xH")
BOOT_NAME: Final = b"NTFS    "
BOOT_MARK: Final = 0xAA55
# The $Boot file: the boot sector and its loader, at most 16 sectors.
BOOT_FILE_SECTORS: Final = 16
SECTOR_BYTES_RANGE: Final = (512, 4096)
CLUSTER_BYTES_MAX: Final = 2 << 20
RECORD_BYTES_RANGE: Final = (512, 16384)

# --- numbers of the system files ---------------------------------------------------------------------
MFT_NO: Final = 0
MFT_MIRROR_NO: Final = 1
LOG_FILE_NO: Final = 2
VOLUME_NO: Final = 3
ROOT_NO: Final = 5
BITMAP_NO: Final = 6
# $MFTMirr holds copies of these first records.
MIRRORED_RECORDS: Final = 4

# --- MFT record --------------------------------------------------------------------------------------
# 0 mark, 4 offset and 6 count of the update sequence, 16 how often the record was used, 20 first attribute,
# 22 flags, 24 bytes in use, 28 bytes allocated, 32 base record.
RECORD: Final = struct.Struct("<4sHH8xHxxHHIIQ")
RECORD_MARK: Final = b"FILE"
# Written by a driver over the mark of a record that it had found torn.
RECORD_MARK_BAD: Final = b"BAAD"
# From version 3.1 on a record says at 44 which one it is; its update sequence then begins at 48.
RECORD_NO_OFFSET: Final = 44
SEQUENCE_AFTER_NO_OFFSET: Final = 48
RECORD_IN_USE: Final = 0x0001
# Every sector-sized stretch of 512 bytes ends in two bytes of the update sequence, whatever the sector size.
SEQUENCE_STRIDE_BYTES: Final = 512

# --- attributes --------------------------------------------------------------------------------------
# 0 type, 4 length, 8 non-resident, 9 length and 10 offset of the name, 12 flags.
ATTRIBUTE: Final = struct.Struct("<IIBBHH")
ATTRIBUTE_LIST: Final = 0x20
FILE_NAME: Final = 0x30
VOLUME_INFORMATION: Final = 0x70
DATA: Final = 0x80
INDEX_ROOT: Final = 0x90
INDEX_ALLOCATION: Final = 0xA0
BITMAP: Final = 0xB0
ATTRIBUTES_END: Final = 0xFFFFFFFF
# 16 length of the value, 20 its offset.
RESIDENT: Final = struct.Struct("<16xIH")
# 16 first and 24 last virtual cluster, 32 offset of the run list, 40 allocated, 48 real, 56 initialised size.
NON_RESIDENT: Final = struct.Struct("<16xQQH6xQQQ")
# An entry of $ATTRIBUTE_LIST: 0 type, 4 length, 6 length of the name, 8 first virtual cluster, 16 record.
LIST_ENTRY: Final = struct.Struct("<IHBxQQ2x")
COMPRESSED_ENCRYPTED_SPARSE: Final = 0x00FF | 0x4000 | 0x8000

# --- $VOLUME_INFORMATION -----------------------------------------------------------------------------
# 8 major and 9 minor version, 10 flags.
VOLUME_STATE: Final = struct.Struct("<8xBBH")
VOLUME_VERSIONS: Final = ((1, 2), (3, 0), (3, 1))
VOLUME_DIRTY: Final = 0x0001
# "Short names are not created": a setting of later Windows, it says nothing about the state.
VOLUME_NO_SHORT_NAMES: Final = 0x0080

# --- restart pages of $LogFile -----------------------------------------------------------------------
# 0 mark, 4 offset and 6 count of the update sequence, 16 system page size, 20 log page size,
# 24 offset of the restart area, 26 minor and 28 major version.
RESTART_PAGE: Final = struct.Struct("<4sHH8xIIHhh")
RESTART_MARKS: Final = (b"RSTR", b"CHKD")
RESTART_PAGE_BYTES_RANGE: Final = (512, 65536)
LOG_BYTES_MAX: Final = 4 << 30
# 0 current log sequence number, 8 number of clients, 10 free list, 12 list of those in use, 14 flags.
RESTART_AREA: Final = struct.Struct("<QHHHH")
NO_CLIENT: Final = 0xFFFF
VOLUME_IS_CLEAN: Final = 0x0002
# Version 2.0 is in force only while Windows keeps metadata in memory: mounted, or shut down for a fast start.
LOG_VERSION_AT_REST: Final = (1, 1)

# --- directory index ---------------------------------------------------------------------------------
# $INDEX_ROOT: 8 size of an index record; the node header follows at 16.
INDEX_ROOT_HEADER: Final = struct.Struct("<8xI4x")
# 0 mark, 4 and 6 update sequence; the node header follows at 24.
INDEX_RECORD: Final = struct.Struct("<4sHH16x")
INDEX_MARK: Final = b"INDX"
# 0 offset of the first entry and 4 end of the entries, both from the node header.
INDEX_NODE: Final = struct.Struct("<II")
# 0 file reference, 8 length of the entry, 10 length of its $FILE_NAME, 12 flags.
INDEX_ENTRY: Final = struct.Struct("<QHHH2x")
INDEX_ENTRY_LAST: Final = 0x0002
# In $FILE_NAME: 64 characters of the name, 66 the name in UTF-16.
NAME_LENGTH_OFFSET: Final = 64
NAME_OFFSET: Final = 66
# A file reference: the number of its record, and above it how often that record had been used.
FILE_NO_MASK: Final = (1 << 48) - 1
USE_COUNT_SHIFT: Final = 48

# hiberfil.sys starts with this while Windows is hibernated (not when it is switched off or awake).
HIBERNATION_FILE: Final = "hiberfil.sys"
HIBERNATION_MARKS: Final = (b"hibr", b"HIBR")

# --- shadow copies (VSS) -----------------------------------------------------------------------------
# 0 identifier, 16 version, 20 type of the record, 48 offset of the catalog (0: no shadow copies),
# 64 this volume, 80 the volume that keeps its shadow copies.
SHADOW_HEADER_OFFSET: Final = 0x1E00
SHADOW_HEADER: Final = struct.Struct("<16sII24xQ8x16s16s")
SHADOW_IDENTIFIER: Final = UUID("3808876b-c176-4e48-b7ae-04046e6cc752").bytes_le
SHADOW_VERSIONS: Final = (1, 2)
SHADOW_HEADER_TYPE: Final = 1
