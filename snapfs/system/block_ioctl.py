"""What a block device says of itself to who has it open: its size, its sectors, whether it can be written.

Source: include/uapi/linux/fs.h of the kernel (BLKROGET, BLKSSZGET, BLKGETSIZE64).
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from typing import Final

_BLKROGET: Final = 0x125E
_BLKSSZGET: Final = 0x1268
_BLKGETSIZE64: Final = 0x80081272
_INT: Final = struct.Struct("=i")
_U64: Final = struct.Struct("=Q")


def size_bytes_of(fd: int) -> int:
    """Of a file or a block device, as it is now."""
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        return _asked(fd, _BLKGETSIZE64, _U64)
    return status.st_size


def sector_bytes_of(fd: int) -> int:
    """The logical sector of a block device: nothing smaller can be read or written past the page cache."""
    return _asked(fd, _BLKSSZGET, _INT)


def is_read_only(fd: int) -> bool:
    """Asked, because not every kernel refuses to open such a device for writing; the writes would fail."""
    try:
        return bool(_asked(fd, _BLKROGET, _INT))
    except OSError:
        return False


def _asked(fd: int, number: int, answer: struct.Struct) -> int:
    return int(answer.unpack(fcntl.ioctl(fd, number, bytes(answer.size)))[0])
