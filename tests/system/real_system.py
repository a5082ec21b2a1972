"""Real mounts, loop devices, users and namespaces to test against."""

from __future__ import annotations

import ctypes
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.machine import MNT_DETACH, NOBODY, loop_device, mounted, run, unmount, wait_until

__all__ = ["NOBODY", "loop_device", "mounted", "run", "wait_until"]

CLONE_NEWNS = 0x00020000
MS_REC_PRIVATE = 0x4000 | 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


def mount_call(source: str, target: Path, fstype: str, flags: int = 0, data: str = "") -> None:
    if _libc.mount(source.encode(), os.fsencode(target), fstype.encode(), flags, data.encode()) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))


@contextmanager
def silent_fuse_mount(
    target: Path, source: str = "/srv/disk.img", user: int = 0, allow_other: bool = False
) -> Iterator[int]:
    """A snapfs mount whose server never answers; closing the file descriptor given is the server's death."""
    fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    options = f"fd={fd},rootmode=40000,user_id={user},group_id={user}" + (",allow_other" if allow_other else "")
    try:
        mount_call(source, target, "fuse.snapfs", data=options)
        yield fd
    finally:
        unmount(target, MNT_DETACH)
        with suppress(OSError):
            os.close(fd)


def in_child(function: Callable[[], Any], user: int | None = None, own_mounts: bool = False) -> Any:
    """The result of `function` in a child process: as another user, or with mounts that only it sees.

    An exception comes back as itself.
    """
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if own_mounts:
                own_mount_namespace()
            if user is not None:
                become(user)
            try:
                answer = (True, function())
            except Exception as error:
                answer = (False, error)
            os.write(write_fd, pickle.dumps(answer))
            status = 0
        finally:
            os._exit(status)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as file:
        pickled = file.read()
    assert os.waitpid(pid, 0)[1] == 0
    good, result = pickle.loads(pickled)
    if not good:
        raise result
    return result


def own_mount_namespace() -> None:
    assert _libc.unshare(CLONE_NEWNS) == 0
    mount_call("none", Path("/"), "none", MS_REC_PRIVATE)


def become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def map_file_without_descriptor(path: Path) -> None:
    """Map the first page of `path` for the rest of this process's life; Python's mmap would keep a descriptor."""
    _libc.mmap.restype = ctypes.c_void_p
    fd = os.open(path, os.O_RDONLY)
    address = _libc.mmap(None, ctypes.c_size_t(4096), 1, 2, fd, ctypes.c_long(0))
    os.close(fd)
    assert address not in (None, ctypes.c_void_p(-1).value)


def libc_prctl(option: int, argument: int) -> None:
    assert _libc.prctl(option, argument, 0, 0, 0) == 0
