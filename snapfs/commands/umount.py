"""`snapfs umount`: both views go, whichever is named; or, when somebody uses one, neither."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from pathlib import Path
from typing import Any, NoReturn

from cow import LOCK_NAME, read_revert_note
from snapfs.client import request
from snapfs.commands.as_owner import as_owner
from snapfs.commands.status import read_status
from snapfs.errors import BusyError, DoneWithProblem, NotMountedError, SnapfsError, StoreGoneError
from snapfs.protocol import BeginMap, ExpectEnd, StopMap, deadline_in
from snapfs.system.asking import become
from snapfs.system.discovery import DISK_ERRORS, find_instance, find_store, store_gone
from snapfs.system.flock import lock_in_time
from snapfs.system.holders import check_unused, unmount_unused
from snapfs.system.image_state import WITHOUT_NAME, describe_image_end, describe_image_state
from snapfs.system.mounts import Mount, is_stale, unmount
from snapfs.system.open_files import processes_with_file
from snapfs.system.processes import readable
from snapfs.system.stores import name_of
from snapfs.system.view_mounts import ViewId, is_mounted, mounts_of, view_on

_END_S = 600.0
_STOP_MAP_TIMEOUT_S = 30.0
_PATIENCE_S = 3.0
_NOT_THERE = (errno.ENOENT, errno.ENOTCONN)


def umount(path: Path, *, force: bool = False) -> None:
    """Unmount the instance behind `path` and wait until it has ended. BusyError: nothing was changed.

    An image that was deleted or replaced, and whose only copy this would end, takes `force`, as does one that is
    half-way back to a snapshot. DoneWithProblem: it
    has ended, but not all that was written to the live view is in the image, or something became of the image.
    """
    mount = find_instance(path)
    as_owner(mount.owner, lambda: _umount(path, mount, force=force))


def _umount(path: Path, mount: Mount, *, force: bool) -> None:
    if _clear_if_stale(mount):
        return
    try:
        store = find_store(path)
    except StoreGoneError as error:
        _umount_without_store(mount, error)
    except SnapfsError as error:
        if is_mounted(ViewId.of(mount)):
            raise
        raise NotMountedError(
            f"{mount.mount_point} has just been unmounted by somebody else; see snapfs status.",
            path=mount.mount_point,
        ) from error
    try:
        lock_fd = os.open(store / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        is_gone = isinstance(error, FileNotFoundError)
        if not is_gone and error.errno not in DISK_ERRORS:
            raise SnapfsError(
                f"The store {name_of(store)} cannot be opened: {error.strerror}; try again.", path=store
            ) from error
        if is_mounted(ViewId.of(mount)):
            _umount_without_store(mount, store_gone(mount, name_of(store), None if is_gone else error))
        return  # somebody else has unmounted it, and a store goes last
    try:
        _end(mount, store, lock_fd, force=force)
    finally:
        os.close(lock_fd)


def _end(mount: Mount, store: Path, lock_fd: int, *, force: bool) -> None:
    try:
        status, lost = _without_views(mount, store, force=force)
    except BusyError:
        raise
    except SnapfsError:
        if is_mounted(ViewId.of(mount)) or not _is_free_soon(lock_fd):
            raise
        return  # somebody else has unmounted it meanwhile, and tells what there is to tell
    _await_end(lock_fd, store, status["pid"])
    if sentence := describe_image_end(status["image_state"], status["image"]):
        raise DoneWithProblem(sentence, path=status["image"])
    if (revert := status.get("revert")) and read_revert_note(store) is not None:
        raise DoneWithProblem(
            f"{status['image']} is unmounted half-way back to {revert['name'] or revert['id']}; its store, "
            f"{name_of(store)}, is kept: mount it again, and snapfs revert goes on.",
            path=status["image"],
        )
    if lost:
        raise DoneWithProblem(
            f"{status['image']} is unmounted, but something that was written to the live view is not in it ({lost}); "
            "compare it with a backup, or write it again.",
            path=status["image"],
        )


def _without_views(mount: Mount, store: Path, *, force: bool) -> tuple[dict[str, Any], str]:
    """Unmount both views: the status of before, and why not all is written (see `_write_out`)."""
    status = read_status(store)
    live, snap = (view_on(status[key]) for key in ("live_device", "snap_device"))
    if ViewId.of(mount) not in (live, snap):
        raise SnapfsError(
            f"{mount.mount_point} leads to the store of another instance, {name_of(store)}; name that one's view.",
            path=mount.mount_point,
        )
    if not force:
        _check_has_name(status)
        _check_no_revert(status)
    request(store, StopMap(deadline_s=deadline_in(_STOP_MAP_TIMEOUT_S)))
    try:
        for view in (snap, live):
            check_unused(view)
    except BusyError:
        with contextlib.suppress(SnapfsError):
            request(store, BeginMap())
        raise
    # Of one that is closed for a revert nobody has written anything.
    lost = "" if status.get("revert") else _write_out(store, live)
    for view in (snap, live):
        with contextlib.suppress(NotMountedError):
            unmount_unused(view)
    return status, lost


def _umount_without_store(mount: Mount, gone: StoreGoneError) -> NoReturn:
    """Nobody can be asked any more: unmount what was named, the other view follows by itself."""
    check_unused(ViewId.of(mount))
    lost = _write_out(gone.store, ViewId.of(mount))
    unmount_unused(ViewId.of(mount))
    what = f"something that was written to it is not in the image ({lost})" if lost else "the other view follows"
    raise DoneWithProblem(
        f"{mount.mount_point} is unmounted and {what}, but the store {gone.store} {gone.what} "
        "while it was in use; wait for the end of the snapfs processes before you use the image.",
        path=mount.mount_point,
    )


def _check_has_name(status: dict[str, Any]) -> None:
    if status["image_state"] in WITHOUT_NAME:
        what = describe_image_state(status["image_state"], status["image"])
        live_file = Path(status["live"]) / status["view_name"]
        raise SnapfsError(
            f"{what}; save it first (cp --sparse=always {live_file} elsewhere), or let it go with --force.",
            path=status["image"],
        )


def _check_no_revert(status: dict[str, Any]) -> None:
    # A server from before there were reverts tells nothing of one.
    if revert := status.get("revert"):
        target = revert["name"] or revert["id"]
        if revert["is_running"]:
            raise SnapfsError(
                f"{status['image']} is being reverted to {target}; wait until that is done (see snapfs status), or "
                "leave it half-way with --force (the store is kept, and one can go on after the next mount).",
                path=status["image"],
            )
        raise SnapfsError(
            f"{status['image']} is only half-way back to {target}; have snapfs revert {status['live']} {target} "
            "come to its end first, or leave it so with --force (the store is kept, and one can go on after the next "
            "mount).",
            path=status["image"],
        )


def _clear_if_stale(mount: Mount) -> bool:
    if not is_stale(mount):
        return False
    unmount(mount.mount_point, lazy=True)
    return True


def _write_out(store: Path, live: ViewId | None) -> str:
    """Have the kernel write what it holds for the live view; why it could not, "" when it could."""
    mounts = mounts_of(live)
    if not mounts:
        return ""
    # In a child, for it may take for ever.
    pid = os.fork()
    if not pid:
        os._exit(_sync_error(mounts[0]))
    pidfd = os.pidfd_open(pid)
    try:
        if not readable([pidfd], _PATIENCE_S):
            # Writes may be waiting for room that never comes; now the snapshot gives way.
            with contextlib.suppress(SnapfsError):
                request(store, ExpectEnd())
            if not readable([pidfd], _END_S):
                os.kill(pid, signal.SIGKILL)
                return "it could not be written in time"
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(pidfd)
    if code in _NOT_THERE and not is_mounted(live):
        return ""  # to unmount it, somebody else had it written
    return os.strerror(code) if code else ""


def _sync_error(mount: Mount) -> int:
    """The errno of what nobody has been told yet, 0 when all is written."""
    try:
        if not mount.allows_others:
            become(mount.owner)
        (name,) = os.listdir(mount.mount_point)
        fd = os.open(mount.mount_point / name, os.O_RDONLY | os.O_CLOEXEC)
        os.fsync(fd)
    except OSError as error:
        return error.errno or errno.EIO
    except ValueError:
        return errno.ENOENT
    return 0


def _await_end(lock_fd: int, store: Path, supervisor_pid: int) -> None:
    """The lock is free when the last process of the instance has ended, with the image synced."""
    if _is_free_soon(lock_fd):
        return
    # A copy of the mounts in another namespace keeps the servers from noticing.
    _end_supervisor(supervisor_pid, lock_fd)
    if not _is_free_soon(lock_fd, _END_S):
        raise SnapfsError(
            f"The views are unmounted, but snapfs has not ended yet; see {name_of(store) / 'log'}.", path=store
        )


def _is_free_soon(lock_fd: int, patience_s: float = _PATIENCE_S) -> bool:
    return lock_in_time(lock_fd, fcntl.LOCK_SH, patience_s)


def _end_supervisor(pid: int, lock_fd: int) -> None:
    """Only a process that holds the store's lock is one of this instance, whatever number its server tells."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            if any(file.pid == pid for file in processes_with_file(lock_fd)):
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                # Stopped by somebody, it would not hear of it.
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        finally:
            os.close(pidfd)
