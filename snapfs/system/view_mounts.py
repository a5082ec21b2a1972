"""Where a view is mounted now: found by the number of its filesystem, never by a remembered path.

Source: mountinfo in proc(5); fdinfo of /dev/fuse shows `fuse_connection`, the minor number of the filesystem.

Rules:
- A path is where a view was mounted; a directory above it may have been renamed since, and something else may be
  mounted there, or nothing. The number belongs to the view for as long as the kernel has it.
- A mount that another one covers cannot be reached by any path, and what is on top of it is not ours to unmount.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from snapfs.errors import BusyError, NotMountedError, SnapfsError
from snapfs.system.kernel_text import kernel_lines
from snapfs.system.mounts import Mount, find_mount, namespace_mounts, read_mounts, unmount

Number = tuple[int, int]

_FUSE_DEVICE: Final = "/dev/fuse"


def device_number(text: str | None) -> Number | None:
    """The number that status shows as "MAJOR:MINOR"; None for a view that is not mounted."""
    if text is None:
        return None
    major, _, minor = text.partition(":")
    return int(major), int(minor)


def session_fd() -> int:
    """The descriptor of this process's FUSE session: the one that is open on /dev/fuse."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == _FUSE_DEVICE:
                return int(name)
    raise RuntimeError("the FUSE session has no descriptor")


def session_number(mount_point: Path) -> Number | None:
    """The number of the filesystem that this process serves; an older kernel is asked by its mount point."""
    for line in kernel_lines(f"/proc/self/fdinfo/{session_fd()}"):
        key, _, value = line.partition(b":")
        if key == b"fuse_connection":
            return 0, int(value)
    mount = find_mount(mount_point)
    return None if mount is None else mount.device


def mounts_of(number: Number | None, mounts: Sequence[Mount] | None = None) -> list[Mount]:
    """The mounts of the filesystem in this namespace; those that can be reached by their path come first."""
    everything = read_mounts() if mounts is None else mounts
    found = [mount for mount in everything if mount.device == number]
    return sorted(found, key=lambda mount: covering(mount, everything) is not None)


def is_mounted(number: Number | None) -> bool:
    """Whether the filesystem is mounted in this namespace."""
    return bool(mounts_of(number))


def processes_that_see(number: Number | None) -> list[int]:
    """A process of each other mount namespace in which the filesystem is mounted."""
    if number is None:
        return []
    return [pid for pid, mounts in namespace_mounts() if any(mount.device == number for mount in mounts)]


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


def unmount_all(number: Number | None, *, lazy: bool = False) -> list[SnapfsError]:
    """Unmount the filesystem wherever it is mounted in this namespace; what stood in the way of some of it."""
    wrong: list[SnapfsError] = []
    for mount in mounts_of(number):
        try:
            unmount_this(mount, lazy=lazy)
        except NotMountedError:
            continue
        except SnapfsError as error:
            wrong.append(error)
    return wrong
