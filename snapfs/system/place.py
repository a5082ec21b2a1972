"""Whether LIVE, SNAP and the store are in places where they can work.

Rules:
- Asked before anything is made, so a refusal leaves nothing behind; what is tried is tried in a file without a
  name, which is gone when it is closed, and for a store that does not exist yet in a directory of its own.
- Giving space back is not asked for: where that cannot be done, it is done without.
- A directory counts as the same by device and inode, and as inside another by its canonical path.
- Mount points are looked up in mountinfo first: a dead mount would answer no other question.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
import tempfile
from pathlib import Path
from typing import Final

from snapfs.errors import PermissionDeniedError, SnapfsError, shortage
from snapfs.system.block_devices import loop_devices, stacked_on
from snapfs.system.descriptors import path_of
from snapfs.system.mounts import Mount, canonical_path, find_mount, is_mount_point
from snapfs.system.scratch import scratch

_HOLE_BYTES: Final = 4 << 20
_PROBED_BYTES: Final = 64 << 10
_MAX_NESTING: Final = 8  # filesystems on loop devices on files of filesystems ...


def check_mount_points(live: Path, snap: Path) -> None:
    """`SnapfsError` unless both are empty directories, apart from each other, with nothing mounted on them."""
    for name, path in (("LIVE", live), ("SNAP", snap)):
        _check_directory(name, path)
    if os.path.samestat(os.stat(live), os.stat(snap)):
        raise SnapfsError(f"LIVE and SNAP are the same directory, {live}; give two directories.", path=live)
    _check_apart(live, snap)
    for name, path in (("LIVE", live), ("SNAP", snap)):
        _check_empty(name, path)
        if not os.access(path, os.W_OK):
            raise _not_permitted(name, path)


def check_empty_directory(name: str, path: Path) -> None:
    """`SnapfsError` unless root can mount on `path`, which is called `name`: an empty directory, and no mount."""
    _check_directory(name, path)
    _check_empty(name, path)


def _check_directory(name: str, path: Path) -> None:
    if is_mount_point(path):
        raise SnapfsError(f"{name} {path} is already a mount; unmount it or give another directory.", path=path)
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SnapfsError(f"{name} {path} does not exist; make the directory first.", path=path) from error
    except OSError as error:
        raise SnapfsError(
            f"{name} {path} cannot be looked at: {error.strerror}; give another directory.", path=path
        ) from error
    if not path.is_dir():
        raise SnapfsError(f"{name} {path} is not a directory; give an empty directory.", path=path)


def _check_apart(live: Path, snap: Path) -> None:
    live_path, snap_path = canonical_path(live), canonical_path(snap)
    if live_path in snap_path.parents:
        raise SnapfsError(f"SNAP {snap} is inside LIVE {live}; give a directory beside it.", path=snap)
    if snap_path in live_path.parents:
        raise SnapfsError(f"LIVE {live} is inside SNAP {snap}; give a directory beside it.", path=live)


def _check_empty(name: str, path: Path) -> None:
    try:
        with os.scandir(path) as entries:
            empty = next(entries, None) is None
    except PermissionError as error:
        raise _not_permitted(name, path) from error
    if not empty:
        raise SnapfsError(
            f"{name} {path} is not empty, a mount would hide what is in it; give an empty directory.", path=path
        )


def _not_permitted(name: str, path: Path) -> SnapfsError:
    return PermissionDeniedError(
        f"{name} {path} may not be mounted on by this user, who cannot write there; give a directory of your own.",
        path=path,
    )


def check_store_place(store: Path, live: Path, snap: Path) -> None:
    """`SnapfsError` unless the store can be in `store`, which need not exist yet, and work there."""
    canonical = canonical_path(store)
    for name, view in (("LIVE", live), ("SNAP", snap)):
        _check_outside(store, canonical, name, view)
    try:
        directory = _existing_directory(store, canonical)
    except OSError as error:
        raise _store_error(store, error) from error
    _check_writable(store, directory)
    _check_filesystem(store, directory)


def _check_outside(store: Path, canonical: Path, name: str, view: Path) -> None:
    view_path = canonical_path(view)
    if canonical == view_path or view_path in canonical.parents:
        raise SnapfsError(
            f"The store {store} is inside {name}, which the mount would hide; "
            "give a directory elsewhere with --store.",
            path=store,
        )
    if any(view_path in path.parents for path in files_below(canonical)):
        raise SnapfsError(
            f"The store {store} is on a filesystem that is mounted from {name} and would wait for itself; "
            "give a directory elsewhere with --store.",
            path=store,
        )


def files_below(path: Path) -> list[Path]:
    """The image files that the filesystem of `path` lives in, through loop devices, from above downwards."""
    files: list[Path] = []
    mount = find_mount(path)
    while mount is not None and len(files) < _MAX_NESTING:
        backing = _backing_file(mount)
        if backing is None:
            break
        files.append(backing)
        mount = find_mount(backing)
    return files


def _backing_file(mount: Mount) -> Path | None:
    for loop in loop_devices():
        for device in stacked_on(loop.block_device):
            if device.device == mount.device or str(device.path) == mount.source:
                return loop.backing_path
    return None


def _existing_directory(store: Path, canonical: Path) -> Path:
    """The store if it exists, else the directory in which it would be made."""
    if canonical.is_dir():
        return canonical
    if canonical.exists() or canonical.is_symlink():
        raise SnapfsError(f"The store {store} is not a directory; give a directory with --store.", path=store)
    if not canonical.parent.is_dir():
        raise SnapfsError(
            f"The store {store} cannot be made, because {canonical.parent} does not exist; "
            "make that directory first.",
            path=store,
        )
    return canonical.parent


def _check_writable(store: Path, directory: Path) -> None:
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        raise SnapfsError(
            f"The store {store} would be on a read-only filesystem; give a directory elsewhere with --store.",
            path=store,
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise PermissionDeniedError(
            f"The store {store} cannot be written, because this user may not write to {directory}; "
            "give a directory of your own with --store.",
            path=store,
        )


def _check_filesystem(store: Path, directory: Path) -> None:
    """Try in a nameless file what the store needs: a hole that takes no room, room, and a shared mapping."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            fd = file.fileno()
            os.ftruncate(fd, _HOLE_BYTES)
            os.pwrite(fd, b"\1", _HOLE_BYTES - 1)
            if os.fstat(fd).st_blocks * 512 >= _HOLE_BYTES:
                raise _wrong_filesystem(store, directory, "without sparse files")
            os.posix_fallocate(fd, 0, _PROBED_BYTES)
            _check_mapping(store, directory, fd)
        if directory != canonical_path(store):
            _check_names(store, directory)
    except OSError as error:
        raise _store_error(store, error) from error


def _check_mapping(store: Path, directory: Path, fd: int) -> None:
    try:
        with mmap.mmap(fd, _PROBED_BYTES, mmap.MAP_SHARED) as mapping:
            mapping[0] = 1
            mapping.flush()
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.EACCES, errno.EINVAL, errno.ENOSYS):
            raise _wrong_filesystem(store, directory, "without memory mapping") from error
        raise


def _check_names(store: Path, directory: Path) -> None:
    """What a new store does with names: permissions, a socket, a lock, a renaming. A store has proven it."""
    with scratch(directory) as name:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_mode & 0o077:
                raise _wrong_filesystem(store, directory, "without permissions")
            place = path_of(fd)
            for lack, try_it in (("sockets", _try_socket), ("locks", _try_lock), ("renaming", _try_rename)):
                try:
                    try_it(place)
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise
                    raise _wrong_filesystem(store, directory, f"without {lack}") from error
            os.fsync(fd)
        finally:
            os.close(fd)


def _try_socket(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "socket"))


def _try_lock(place: Path) -> None:
    with (place / "lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _try_rename(place: Path) -> None:
    for name in ("old", "new"):
        (place / name).touch(0o600)
    (place / "new").rename(place / "old")


def _wrong_filesystem(store: Path, directory: Path, lack: str) -> SnapfsError:
    mount = find_mount(directory)
    fstype = "filesystem" if mount is None else f"{mount.fstype} filesystem"
    return SnapfsError(
        f"The store {store} would be on a {fstype} {lack}; "
        "give a directory on ext4, XFS, btrfs or tmpfs with --store.",
        path=store,
    )


def _store_error(store: Path, error: OSError) -> SnapfsError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SnapfsError(
            f"The store {store} has no room, because its filesystem is full; "
            "free some space or give a directory elsewhere with --store.",
            path=store,
        )
    if error.errno == errno.ENAMETOOLONG:
        return SnapfsError(
            f"The store {store} cannot be made, because its name is too long; give a shorter one with --store.",
            path=store,
        )
    if error.errno == errno.EFBIG:
        return SnapfsError(
            f"The store {store} would be where files may not grow; "
            "raise the limit (ulimit -f) or give a directory elsewhere with --store.",
            path=store,
        )
    if (sentence := shortage(error)) is not None:
        return SnapfsError(sentence, path=store)
    return SnapfsError(
        f"The store {store} cannot be written: {error.strerror}; give a directory elsewhere with --store.",
        path=store,
    )
