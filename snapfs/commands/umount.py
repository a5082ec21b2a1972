"""``snapfs umount``: both views go, whichever is named; or, when somebody uses one, neither."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from pathlib import Path

from cow.store import LOCK_NAME
from snapfs.commands.status import read_status
from snapfs.control import request
from snapfs.errors import BusyError, NotMountedError, SnapfsError
from snapfs.system.discovery import find_store
from snapfs.system.holders import check_unused, unmount_unused
from snapfs.system.mounts import SNAPFS_TYPE, find_mount, flush_filesystem, is_mount_point, is_stale, unmount
from snapfs.system.processes import readable

_END_S = 600.0
_PATIENCE_S = 3.0
_LOOK_S = 0.02


def umount(path: Path) -> None:
    """Unmount the instance behind ``path`` and wait until it has ended. BusyError: nothing was changed."""
    if _clear_if_stale(path):
        return
    store = find_store(path)
    status = read_status(store)
    points = [Path(status["snap"]), Path(status["live"])]
    request(store, "stop-map")
    try:
        for point in points:
            check_unused(point)
    except BusyError:
        request(store, "begin-map")
        raise
    _write_out(store, Path(status["live"]))
    lock_fd = os.open(store / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for point in points:
            with contextlib.suppress(NotMountedError):
                unmount_unused(point)
        _await_end(lock_fd, store, status["pid"])
    finally:
        os.close(lock_fd)


def _clear_if_stale(path: Path) -> bool:
    mount = find_mount(path)
    if mount is None or mount.fstype != SNAPFS_TYPE or not is_stale(mount):
        return False
    unmount(mount.mount_point, lazy=True)
    return True


def _write_out(store: Path, live: Path) -> None:
    """Have the kernel write what it holds for the live view: in a child, for it may take for ever."""
    if not is_mount_point(live):
        return
    pid = os.fork()
    if not pid:
        with contextlib.suppress(OSError):
            flush_filesystem(live)
        os._exit(0)
    pidfd = os.pidfd_open(pid)
    if not readable([pidfd], _PATIENCE_S):
        # Writes may be waiting for room that never comes; now the snapshot gives way.
        with contextlib.suppress(SnapfsError):
            request(store, "ending")
        if not readable([pidfd], _END_S):
            os.kill(pid, signal.SIGKILL)
    os.close(pidfd)
    os.waitpid(pid, 0)


def _await_end(lock_fd: int, store: Path, supervisor_pid: int) -> None:
    """The lock is free when the last process of the instance has ended, with the image synced."""
    began = time.monotonic()
    is_told = False
    while True:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            waited_s = time.monotonic() - began
            if waited_s > _PATIENCE_S and not is_told:
                # A copy of the mounts in another namespace keeps the servers from noticing.
                is_told = True
                with contextlib.suppress(OSError):
                    os.kill(supervisor_pid, signal.SIGTERM)
            if waited_s > _END_S:
                raise SnapfsError(
                    f"The views are unmounted, but snapfs has not ended yet; see {store / 'log'}.", path=store
                ) from None
        time.sleep(_LOOK_S)
