"""Opening the files of a store: they are plain files of its owner, or they are refused.

Whoever can write to a directory above a store may have put anything in a file's place.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def open_plain(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a file of a store: never through a symbolic link, never a FIFO or a device, never one that has another
    name elsewhere or belongs to somebody else. OSError: it is such a one, or open(2) refuses.

    Who only reads may find files of the directory's owner: root looks into the stores of others.
    """
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    try:
        info = os.fstat(fd)
        owners = {os.geteuid()}
        if flags & os.O_ACCMODE == os.O_RDONLY:
            owners |= {0, os.stat(path.parent).st_uid}
        if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1 or info.st_uid not in owners:
            raise OSError(errno.EPERM, "it is no plain file of the store's owner", os.fspath(path))
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_plain(path: Path) -> bytes:
    """All that a small file of a store holds; OSError as of `open_plain`."""
    with open(open_plain(path, os.O_RDONLY), "rb") as file:
        return file.read()


def is_plain(path: Path, size_bytes: int) -> bool:
    """Whether `open_plain` opens it for writing, and it has this size."""
    try:
        info = os.lstat(path)
    except OSError:
        return False
    is_own = stat.S_ISREG(info.st_mode) and info.st_nlink == 1 and info.st_uid == os.geteuid()
    return is_own and info.st_size == size_bytes


def check_directory(path: Path) -> None:
    """OSError unless it is a directory itself, not a link to one, that belongs to whoever its parent belongs to."""
    info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.stat(path.parent).st_uid:
        raise OSError(errno.ENOTDIR, "it is no directory of the store's owner", os.fspath(path))
