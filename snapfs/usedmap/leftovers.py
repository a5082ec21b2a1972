"""What begins inside a stretch that carries a filesystem's signature at its own beginning.

A disk that was formatted as a whole, partitioned later, and then lost its partition table looks like the old
filesystem again, whose free blocks are the partitions' files. What is left to speak for them are their superblocks,
which lie where partitions begin: in the first megabytes, at any sector.

Rules
1. One superblock is enough, and it is not looked into: a false alarm costs space.
2. A copy of the filesystem's own superblock does not count: of a backup, of a journal or a log.

Sources: the superblocks as in the layout module of each filesystem; LUKS2 On-Disk Format 2.1; lvm2's label in one of
the first four sectors; md's superblock of version 1.2, 4 KiB on.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from snapfs.usedmap.source import Source

# Tools begin the first partition at 1 MiB, older ones at sector 63; nobody is known to begin it later than this.
_LOOKED_AT_BYTES: Final = 2 << 20
_SECTOR_BYTES: Final = 512
_SUPERBLOCK_BYTES: Final = 128 << 10  # btrfs has its own the furthest on

_EXT_AT, _EXT_MAGIC, _EXT_LOG_BLOCK, _EXT_GROUP, _EXT_UUID = 1024, 0x38, 0x18, 0x5A, 0x68
_MAX_LOG_BLOCK = 6
_BTRFS_AT, _BTRFS_BYTENR, _BTRFS_MAGIC = 64 << 10, 48, 64
_XFS_UUID = 32
_UUID_BYTES = 16
_MAGICS: Final = (
    (0, b"XFSB"),
    (0, b"LUKS\xba\xbe"),
    (0, b"LABELONE"),
    (3, b"NTFS    "),
    (3, b"EXFAT   "),
    (54, b"FAT12   "),
    (54, b"FAT16   "),
    (82, b"FAT32   "),
    (4086, b"SWAPSPACE2"),
    (4096, b"\xfc\x4e\x2b\xa9"),
)


def first_within(source: Source) -> int | None:
    """The offset, after the first sector, at which something else begins; None when nothing is seen."""
    data = source.read(0, min(source.size_bytes, _LOOKED_AT_BYTES + _SUPERBLOCK_BYTES))
    found = {*_by_magic(data), *_ext(data), *_btrfs(data)}
    looked_at = (offset for offset in found if 0 < offset < _LOOKED_AT_BYTES and not offset % _SECTOR_BYTES)
    return min(looked_at, default=None)


def _places(data: bytes, magic: bytes) -> Iterator[int]:
    at = data.find(magic)
    while at >= 0:
        yield at
        at = data.find(magic, at + 1)


def _by_magic(data: bytes) -> Iterator[int]:
    own_boot, own_uuid = data[:_SECTOR_BYTES], data[_XFS_UUID : _XFS_UUID + _UUID_BYTES]
    for at, magic in _MAGICS:
        for place in _places(data, magic):
            start = place - at
            sector = data[max(start, 0) : max(start, 0) + _SECTOR_BYTES]
            is_own_boot = at < _SECTOR_BYTES and sector == own_boot
            is_own_log = magic == b"XFSB" and sector[_XFS_UUID : _XFS_UUID + _UUID_BYTES] == own_uuid
            if start > 0 and not is_own_boot and not is_own_log:
                yield start


def _ext(data: bytes) -> Iterator[int]:
    own_uuid = data[_EXT_AT + _EXT_UUID :][:_UUID_BYTES]
    for place in _places(data, b"\x53\xef"):
        superblock = place - _EXT_MAGIC
        start = superblock - _EXT_AT
        if start <= 0 or superblock + _EXT_UUID + _UUID_BYTES > len(data):
            continue
        (log_block,) = struct.unpack_from("<I", data, superblock + _EXT_LOG_BLOCK)
        (group,) = struct.unpack_from("<H", data, superblock + _EXT_GROUP)
        uuid = data[superblock + _EXT_UUID :][:_UUID_BYTES]
        if log_block <= _MAX_LOG_BLOCK and group == 0 and uuid != own_uuid:
            yield start


def _btrfs(data: bytes) -> Iterator[int]:
    for place in _places(data, b"_BHRfS_M"):
        superblock = place - _BTRFS_MAGIC
        start = superblock - _BTRFS_AT
        if start > 0 and struct.unpack_from("<Q", data, superblock + _BTRFS_BYTENR) == (_BTRFS_AT,):
            yield start
