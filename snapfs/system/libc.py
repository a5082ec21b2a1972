"""The system calls that Python does not offer, through the C library.

Source: the manual pages mount(2), umount(2), open_tree(2), rename(2), syncfs(2), mlockall(2), prctl(2), mallopt(3).
Every function here either works or raises `OSError` with the errno; what that means to a user is the business of
its caller.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_REMOUNT: Final = 32
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8
OPEN_TREE_CLONE: Final = 1

PR_SET_PDEATHSIG: Final = 1
PR_SET_NAME: Final = 15
PR_SET_IO_FLUSHER: Final = 57
PR_GET_IO_FLUSHER: Final = 58

MCL_CURRENT: Final = 1
MCL_FUTURE: Final = 2

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
M_ARENA_MAX: Final = -8

_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.prctl.argtypes = (ctypes.c_int, *[ctypes.c_ulong] * 4)


def _checked(result: int, path: os.PathLike[str] | str | None = None) -> int:
    if result < 0:
        errno_ = ctypes.get_errno()
        raise OSError(errno_, os.strerror(errno_), None if path is None else os.fspath(path))
    return result


def mount(
    source: os.PathLike[str] | str, path: os.PathLike[str] | str, fstype: str, flags: int, options: str
) -> None:
    """Mount on `path`; no helper program of the filesystem is asked, and no file tells of it."""
    result = _libc.mount(os.fsencode(source), os.fsencode(path), fstype.encode(), flags, options.encode())
    _checked(result, path)


def umount2(path: os.PathLike[str] | str, flags: int) -> None:
    """Unmount what is mounted on `path`; never asks its server, so a dead one does not matter."""
    _checked(_libc.umount2(os.fsencode(path), flags), path)


def open_tree(path: os.PathLike[str] | str, flags: int) -> int:
    """A descriptor of the mount at `path`, or with OPEN_TREE_CLONE of a copy that is mounted nowhere."""
    try:
        function = _libc.open_tree
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    return _checked(function(_AT_FDCWD, os.fsencode(path), flags), path)


def rename_new(old: os.PathLike[str] | str, new: os.PathLike[str] | str) -> None:
    """Rename to a name that nothing has; OSError(EEXIST) when something has it, EINVAL where that cannot be asked."""
    try:
        function = _libc.renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    function.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    _checked(function(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), _RENAME_NOREPLACE), new)


def syncfs(fd: int) -> None:
    """Write back what the filesystem of `fd` still holds in memory; returns when it is written."""
    _checked(_libc.syncfs(fd))


def mlockall(flags: int) -> None:
    """Keep all memory of this process in memory, so that no use of it waits for a disk."""
    _checked(_libc.mlockall(flags))


def munlockall() -> None:
    """Undo `mlockall`."""
    _checked(_libc.munlockall())


def prctl(option: int, argument: int) -> int:
    """One setting of the calling thread or its process, as the option says."""
    return _checked(_libc.prctl(option, argument, 0, 0, 0))


def prctl_name(name: bytes) -> None:
    """Name the calling thread; the kernel keeps 15 bytes."""
    buffer = ctypes.create_string_buffer(name[:15])
    _checked(_libc.prctl(PR_SET_NAME, ctypes.addressof(buffer), 0, 0, 0))


def mallopt(parameter: int, value: int) -> bool:
    """Tune malloc; False where this C library has no such parameter or refuses the value."""
    try:
        function = _libc.mallopt
    except AttributeError:
        return False
    function.argtypes = (ctypes.c_int, ctypes.c_int)
    return bool(function(parameter, value))
