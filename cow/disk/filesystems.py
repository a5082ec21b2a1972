"""How the filesystem of the store wants shared memory to be stored into, so that no full disk kills a process.

=========  ==================  ====================================================================================
way        on                  why
=========  ==================  ====================================================================================
MAPPED     ext2/3/4, XFS       a page that was allocated once can be written out without new room, for ever
RESERVED   tmpfs               the same, but even a look at a hole takes room: no map has a hole
WRITTEN    all others (btrfs)  a page may be copied whenever it is written out, which a store through a mapping
                               learns by SIGBUS: they are only looked at through it, and stored into by pwrite
=========  ==================  ====================================================================================
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import os
import sys
from enum import Enum
from pathlib import Path

_EXT, _XFS, _TMPFS, _BTRFS, _FUSE = 0xEF53, 0x58465342, 0x01021994, 0x9123683E, 0x65735546
_STATFS_BYTES = 512
_GET_FLAGS, _SET_FLAGS, _NO_COPY_FLAG = 0x80086601, 0x40086602, 0x00800000
_libc = ctypes.CDLL(None, use_errno=True)


class Storing(Enum):
    """See the module's docstring."""

    MAPPED = "mapped"
    RESERVED = "reserved"
    WRITTEN = "written"


def storing_on(fd: int) -> Storing:
    """How to store into the file behind `fd`; WRITTEN, which is right everywhere, where nothing is known."""
    kind = _filesystem_type(fd)
    if kind in (_EXT, _XFS):
        return Storing.MAPPED
    return Storing.RESERVED if kind == _TMPFS else Storing.WRITTEN


def tells_holes(fd: int) -> bool:
    """Whether what lseek calls a hole is one. Not through FUSE: the kernel asks the server, which knows nothing of
    the writes that the kernel has not handed on yet."""
    return _filesystem_type(fd) not in (_FUSE, 0)


def _filesystem_type(fd: int) -> int:
    facts = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, facts):
        return 0
    # The first word of the structure, whatever the machine.
    return int.from_bytes(facts.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) & 0xFFFFFFFF


def forbid_copying(directory: Path) -> None:
    """On btrfs, have what will be made in `directory` overwritten in place, as far as it allows that.

    It saves room and time; nothing depends on it, for a subvolume that is snapshotted copies once more.
    """
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if _filesystem_type(fd) == _BTRFS:
                flags = array.array("l", [0])
                fcntl.ioctl(fd, _GET_FLAGS, flags)
                flags[0] |= _NO_COPY_FLAG
                fcntl.ioctl(fd, _SET_FLAGS, flags)
        finally:
            os.close(fd)
