"""Where a view is mounted now: found by what its filesystem is, never by a remembered path.

Source: mountinfo in proc(5); fdinfo of /dev/fuse shows `fuse_connection`, the minor number of the filesystem.

Rules:
- A path is where a view was mounted; a directory above it may have been renamed since, and something else may be
  mounted there, or nothing.
- The number of a filesystem is given to the next one as soon as it is unmounted. So type and source have to fit as
  well: nobody else shows an image while its instance holds it.
- A mount that another one covers cannot be reached by any path, and what is on top of it is not ours to unmount.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

from snapfs.errors import BusyError, NotMountedError, SnapfsError
from snapfs.system.kernel_text import kernel_lines
from snapfs.system.mounts import (
    SNAPFS_TYPE,
    Mount,
    find_mount,
    read_mounts,
    snapfs_mounts,
    unmount,
)

_FUSE_DEVICE: Final = "/dev/fuse"
_DIGEST_BYTES: Final = 8


class ViewId(NamedTuple):
    """Which filesystem a view is: its number, and the source that mountinfo shows of it, as a number too, so that it
    fits into memory that is shared."""

    major: int
    minor: int
    source: int

    @classmethod
    def of(cls, mount: Mount) -> ViewId:
        return cls(*mount.device, source_number(mount.source))

    @property
    def device(self) -> str:
        """As mountinfo shows it."""
        return f"{self.major}:{self.minor}"


def source_number(source: str) -> int:
    """64 bits of it."""
    return int.from_bytes(blake2b(os.fsencode(source), digest_size=_DIGEST_BYTES).digest(), "little")


def view_on(device: str | None) -> ViewId | None:
    """The view on the filesystem with the number "MAJOR:MINOR", as status shows it; None when it is not mounted."""
    mounts = [mount for mount in snapfs_mounts() if "{}:{}".format(*mount.device) == device]
    return ViewId.of(mounts[0]) if mounts else None


def session_fd() -> int:
    """The descriptor of this process's FUSE session: the one that is open on /dev/fuse."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == _FUSE_DEVICE:
                return int(name)
    raise RuntimeError("the FUSE session has no descriptor")


def session_view(mount_point: Path) -> ViewId | None:
    """The view that this process serves; an older kernel is asked by its mount point."""
    for line in kernel_lines(f"/proc/self/fdinfo/{session_fd()}"):
        key, _, value = line.partition(b":")
        if key == b"fuse_connection":
            return view_on(f"0:{int(value)}")
    mount = find_mount(mount_point)
    return None if mount is None else ViewId.of(mount)


def mounts_of(view: ViewId | None, mounts: Sequence[Mount] | None = None) -> list[Mount]:
    """The mounts of the view in this namespace; those that can be reached by their path come first."""
    everything = read_mounts() if mounts is None else mounts
    found = [mount for mount in everything if _is_of(mount, view)]
    return sorted(found, key=lambda mount: covering(mount, everything) is not None)


def _is_of(mount: Mount, view: ViewId | None) -> bool:
    return mount.fstype == SNAPFS_TYPE and ViewId.of(mount) == view


def is_mounted(view: ViewId | None) -> bool:
    """Whether the view is mounted in this namespace."""
    return bool(mounts_of(view))


def covering(mount: Mount, mounts: Sequence[Mount]) -> Mount | None:
    """What is mounted on top of the whole of `mount`, so that its path leads elsewhere."""
    for other in mounts:
        if other.parent_id == mount.mount_id and other.mount_point == mount.mount_point and other is not mount:
            return other
    return None


def check_reachable(mount: Mount) -> None:
    """BusyError when something else is mounted over `mount`; NotMountedError when it is gone."""
    mounts = read_mounts()
    if all(other.mount_id != mount.mount_id for other in mounts):
        raise NotMountedError(f"{mount.mount_point} is not mounted any more; nothing was changed.")
    cover = covering(mount, mounts)
    if cover is not None:
        holder = f"{cover.source} ({cover.fstype}) is mounted over it"
        raise BusyError(
            f"{mount.mount_point} is in use: {holder}; unmount that first (nothing was unmounted).",
            path=mount.mount_point,
            holders=[holder],
        )


def unmount_this(mount: Mount, *, lazy: bool = False) -> None:
    """Unmount exactly `mount`, whatever else its path may lead to. Errors as of `unmount`, and BusyError when it
    is covered."""
    check_reachable(mount)
    unmount(mount.mount_point, lazy=lazy)


def unmount_all(view: ViewId | None, *, lazy: bool = False) -> list[SnapfsError]:
    """Unmount the view wherever it is mounted in this namespace; what stood in the way of some of it."""
    wrong: list[SnapfsError] = []
    for mount in mounts_of(view):
        try:
            unmount_this(mount, lazy=lazy)
        except NotMountedError:
            continue
        except SnapfsError as error:
            wrong.append(error)
    return wrong
