"""From whatever a user names, LIVE, SNAP or IMAGE, to the store of the instance behind it.

Each view has a hidden symbolic link to its store, so nothing has to be registered anywhere, and nothing is
left behind when an instance is killed.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from snapfs.errors import NotMountedError, SnapfsError
from snapfs.system.mounts import SNAPFS_TYPE, Mount, canonical_path, find_mount, snapfs_mounts

# Never listed in the views; kept in step with the views by a test.
STORE_LINK = ".snapfs"


def find_store(path: Path | str) -> Path:
    """The store of the instance that ``path`` belongs to; NotMountedError when there is none."""
    path = Path(path)
    mount = find_mount(path)
    if mount is not None and mount.fstype == SNAPFS_TYPE:
        return store_of_mount(mount)
    canonical = canonical_path(path)
    for candidate in snapfs_mounts():
        if canonical_path(candidate.source) == canonical:
            return store_of_mount(candidate)
    raise NotMountedError(f"{path} is not mounted with snapfs; name LIVE, SNAP or IMAGE of a mounted one.", path=path)


def store_of_mount(mount: Mount) -> Path:
    """The store behind a view; SnapfsError when its server is gone or refuses."""
    point = mount.mount_point
    try:
        return Path(os.readlink(point / STORE_LINK))
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise SnapfsError(
                f"The snapfs of {point} was killed; mount the image again to carry on, or unmount {point}.",
                path=point,
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise SnapfsError(f"{point} belongs to another user; ask as that user.", path=point) from error
        raise SnapfsError(f"{point} does not answer: {error.strerror}.", path=point) from error


def all_stores() -> list[Path]:
    """The stores of all instances that this user can see and that answer."""
    stores: list[Path] = []
    for mount in snapfs_mounts():
        try:
            store = store_of_mount(mount)
        except SnapfsError:
            continue
        if store not in stores:
            stores.append(store)
    return stores
