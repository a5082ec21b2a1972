"""What kind of file a name leads to, and opening only those that can be read like an image.

Rules:
- Nothing is waited for: a FIFO would wait for its other end, a character device may do anything when it is
  opened. So the kind is asked first, and again of what was opened, without waiting.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from snapfs.errors import SnapfsError

_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFBLK: "a block device",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFLNK: "a symbolic link",
}


def kind_name(mode: int) -> str:
    """As in "PATH is a FIFO"."""
    return _KINDS.get(stat.S_IFMT(mode), "something else")


def holds_data(mode: int) -> bool:
    """Whether it is a regular file or a block device: what can be read and written at any offset."""
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def open_readable(path: Path, way_out: str, *, flags: int = 0) -> int:
    """A file or block device, open for reading. SnapfsError for another kind, with `way_out`; OSError as open(2)."""
    check_readable(path, os.stat(path).st_mode, way_out)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | flags)
    try:
        check_readable(path, os.fstat(fd).st_mode, way_out)
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_readable(path: Path, mode: int, way_out: str) -> None:
    """SnapfsError unless it is a file or a block device."""
    if not holds_data(mode):
        raise SnapfsError(f"{path} is {kind_name(mode)}, neither a file nor a block device; {way_out}.", path=path)


def read_small(path: Path, way_out: str, *, flags: int = 0) -> bytes:
    """All of a file. SnapfsError and OSError as `open_readable`."""
    with open(open_readable(path, way_out, flags=flags), "rb") as file:
        return file.read()
