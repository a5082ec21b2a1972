"""The mounts that `snapfs browse` makes, recognised by what they are: nothing is registered anywhere.

    DIR             a filesystem on a read-only loop device over a file of a snapshot view, or over one that is a
                    mount without a place, which shows a backup, or
    DIR             a tmpfs of the name `BROWSE_SOURCE`, in which
    DIR/pN          are filesystems, one for each partition that has one

Rules:
- Only what the kernel says is looked at (mountinfo, sysfs); no server of a view is asked.
- What somebody has mounted so by hand from a snapshot view counts as well: it ends in the same way.
- What is mounted deeper inside is not ours: it holds what it lies on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapfs.system.block_devices import DETACHED, BlockDevice, loop_devices
from snapfs.system.mounts import SNAPFS_TYPE, Mount, find_mount, read_mounts

# Also how the process is called that keeps a backup shown.
BROWSE_SOURCE: Final = "snapfs-browse"
_TMPFS: Final = "tmpfs"


@dataclass(frozen=True)
class Browse:
    """The files of a snapshot on `directory`. `mounts` is all of it, from above downwards."""

    directory: Path
    mounts: tuple[Mount, ...]


def browses() -> list[Browse]:
    """All of them, in the order in which they were mounted."""
    mounts = read_mounts()
    devices = _snapshot_devices()
    found = []
    for mount in mounts:
        if _is_top(mount):
            within = (other for other in mounts if other.parent_id == mount.mount_id)
            found.append(Browse(mount.mount_point, (mount, *(one for one in within if _is_part(one, mount)))))
        elif mount.source in devices and not any(_is_top(other) and _is_part(mount, other) for other in mounts):
            found.append(Browse(mount.mount_point, (mount,)))
    return found


def browses_on(devices: Sequence[BlockDevice]) -> list[Browse]:
    """Those that show a filesystem on one of the devices."""
    nodes = {str(device.path) for device in devices}
    return [browse for browse in browses() if any(mount.source in nodes for mount in browse.mounts)]


def _is_top(mount: Mount) -> bool:
    return mount.fstype == _TMPFS and mount.source == BROWSE_SOURCE


def _is_part(mount: Mount, top: Mount) -> bool:
    return mount.parent_id == top.mount_id and mount.mount_point.parent == top.mount_point


def _snapshot_devices() -> set[str]:
    """The nodes of the loop devices over files of snapshot views, or over what shows a backup."""
    found = set()
    for loop in loop_devices():
        if loop.backing_path == DETACHED:
            found.add(str(loop.block_device.path))
            continue
        view = find_mount(loop.backing_path)
        if view is not None and view.fstype == SNAPFS_TYPE and "rw" not in view.options:
            found.add(str(loop.block_device.path))
    return found
