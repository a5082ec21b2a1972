"""A store's directory, held: opened once, its owner looked at, and from then on addressed by its descriptor.

Rules:
- A directory on the way may belong to somebody else, who renames it, or puts a symbolic link in its place, between
  any two looks at a path. So a path is followed once. What is found there is judged by the descriptor, and used
  through it: `/proc/self/fd/N`, which also the children of this process can use.
- A store belongs to this user, and only he can write to it: then everything in it is his. Root may look into the
  stores of others, and believes of them what their owners may say about themselves.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from snapfs.errors import NotMountedError, PermissionDeniedError, SnapfsError
from snapfs.system.descriptors import descriptor_in, last_name, path_of
from snapfs.system.mounts import SNAPFS_TYPE, find_mount

# The symbolic link in each view that leads to its store; never listed.
LINK_NAME: Final = b".snapfs"


def hold_store(path: Path, owner: int | None = None) -> Path:
    """A path to the store at canonical `path` that leads to the same directory as long as this process lives.

    `owner` is the user that it has to belong to; without one: this user or root, and for root anybody.
    SnapfsError: it does not, or there is no such directory.
    """
    # A view that says so means a directory of this process, that is of somebody else.
    if owner is None and is_held(path):
        return path
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise unreachable(path, error) from error
    held = path_of(fd)
    try:
        check_owner(path, os.fstat(fd), owner)
    except BaseException:
        os.close(fd)
        raise
    return held


def held_fds(store: Path) -> tuple[int, ...]:
    """What a program that is started must inherit, so that it can use the path of the store."""
    fd = descriptor_in(store)
    return () if fd is None else (fd,)


def let_go(store: Path) -> None:
    """Close a held store."""
    for fd in held_fds(store):
        os.close(fd)


def is_held(path: Path) -> bool:
    """Whether the path is one that `hold_store` gave."""
    return descriptor_in(path) is not None


def name_of(path: Path | str) -> Path:
    """A held store as people call it; any other path as it is."""
    path = Path(path)
    fd = descriptor_in(path)
    return path if fd is None else last_name(fd)


def owner_of_store(store: Path) -> int:
    """The user to whom a held store belongs."""
    return os.stat(store).st_uid


def check_owner(path: Path, info: os.stat_result, owner: int | None) -> None:
    """SnapfsError unless what `info` says of the store at `path` lets its user, `owner` or as in
    `hold_store`, be believed."""
    allowed = {owner} if owner is not None else {os.geteuid(), 0}
    if info.st_uid not in allowed and (owner is not None or os.geteuid() != 0):
        raise PermissionDeniedError(
            f"The store {path} belongs to another user (uid {info.st_uid}) and is not believed; "
            "ask as that user, or give another --store to mount.",
            path=path,
        )
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionDeniedError(
            f"The store {path} can be written to by others and is not believed; take that from them (chmod go-w).",
            path=path,
        )


def unreachable(path: Path, error: OSError) -> SnapfsError:
    """Why the directory of a store cannot be opened."""
    if error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink():
        return PermissionDeniedError(
            f"The store {path} is a symbolic link and is not followed; name the directory itself.", path=path
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotMountedError(f"No snapfs is running on {path}; mount the image first.", path=path)
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDeniedError(f"{path} belongs to another user; ask as that user or as root.", path=path)
    return SnapfsError(f"The store {path} cannot be opened: {error.strerror}; check the disk it is on.", path=path)


def check_view(point: Path, store: Path) -> None:
    """SnapfsError unless a snapfs of the owner of `store` is mounted on `point` itself."""
    mount = find_mount(point)
    is_view = mount is not None and mount.fstype == SNAPFS_TYPE and mount.mount_point == point
    if mount is None or not is_view or mount.user_id != owner_of_store(store):
        raise NotMountedError(
            f"The view {point} is not mounted any more; mount the image again.",
            path=point,
        )
