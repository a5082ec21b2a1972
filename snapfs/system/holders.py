"""Who uses a mounted filesystem, and who uses an image: the second half of "disk.img is in use: ...".

Rules:
- Only what can be known without waiting for a server that may hang (see `open_files`, `block_devices`).
- An empty list means that nobody was found, not that nobody is there: an ordinary user sees only his own
  processes. The kernel's own refusal (EBUSY, a lock) stays the judge; this is for saying who.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from snapfs.errors import BusyError, NotMountedError
from snapfs.system import block_devices
from snapfs.system.block_devices import BlockDevice, loop_devices, stacked_on, uses_of
from snapfs.system.browses import browses_on
from snapfs.system.discovery import believed_mounts
from snapfs.system.image_lock import lock_holders
from snapfs.system.mounts import (
    Mount,
    canonical_path,
    find_mount,
    read_mounts,
)
from snapfs.system.open_files import Holder, HolderKind, describe, processes_using
from snapfs.system.view_mounts import ViewId, check_reachable, mounts_of, unmount_this

__all__ = [
    "Holder",
    "check_unused",
    "describe",
    "holders_of_image",
    "holders_of_mount",
    "owners_of_image",
    "unmount_unused",
]

# Who only passes by (another umount, a look into the directory) is gone by then.
_PATIENCE_S = 2.0
_LOOK_S = 0.01


def check_unused(view: ViewId | None, consequence: str = "nothing was unmounted") -> None:
    """BusyError names who uses the view, if it is mounted and anybody does."""
    for mount in mounts_of(view)[:1]:
        check_reachable(mount)
        holders = holders_of_mount(mount)
        if holders:
            raise BusyError(
                f"{mount.mount_point} is in use: {describe(holders)}; end that{_how_to_end(mount)} and try again "
                f"({consequence}).",
                path=mount.mount_point,
                holders=[holder.description for holder in holders],
            )


def unmount_unused(view: ViewId | None) -> None:
    """Unmount the view, wherever it is now; BusyError names who uses it, and somebody who cannot be named is
    waited for. NotMountedError: it is not mounted here."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        mounts = mounts_of(view)
        if not mounts:
            raise NotMountedError("The view is not mounted any more; nothing was changed.")
        try:
            unmount_this(mounts[0])
            return
        except BusyError:
            check_unused(view)
            if time.monotonic() > until:
                raise
        time.sleep(_LOOK_S)


def holders_of_mount(mount: Mount) -> list[Holder]:
    """Who keeps the filesystem of `mount` in use: loop devices on its files, bind mounts, processes."""
    return [*map(_loop_holder, _loops_on_mount(mount)), *_other_mounts(mount), *processes_using(mount)]


def _how_to_end(view: Mount) -> str:
    """For a view whose files somebody browses."""
    found = browses_on(_loops_on_mount(view))
    return f" ({', '.join(f'snapfs browse --end {browse.directory}' for browse in found)})" if found else ""


def _loops_on_mount(mount: Mount) -> list[BlockDevice]:
    number = os.makedev(*mount.device)
    found = []
    for loop in loop_devices():
        lies_on = find_mount(loop.backing_path)
        by_path = lies_on is not None and lies_on.device == mount.device
        if loop.backing_device == number or by_path:
            found.append(loop.block_device)
    return found


def _loop_holder(device: BlockDevice) -> Holder:
    return Holder("loop", f"loop device {_with_uses(device)}")


def _with_uses(device: BlockDevice) -> str:
    """As in "/dev/loop3 (mounted on /mnt/x)"; when nothing is mounted, what is stacked on the device."""
    stacked = stacked_on(device)
    uses = uses_of(stacked)
    if not uses:
        uses = [f"used by {upper.path}" for upper in stacked if _is_built_on_another(upper)]
    return f"{device.path} ({', '.join(uses)})" if uses else str(device.path)


def _is_built_on_another(device: BlockDevice) -> bool:
    return any((block_devices.SYS_BLOCK / device.name / "slaves").glob("*"))


def _other_mounts(mount: Mount) -> list[Holder]:
    """Other mounts of the same filesystem, and mounts on top of its directories: both hold it."""
    found = []
    for other in read_mounts():
        if other.mount_id == mount.mount_id:
            continue
        if other.device == mount.device:
            found.append(Holder("mount", f"it is also mounted on {other.mount_point}"))
        elif other.parent_id == mount.mount_id:
            found.append(Holder("mount", f"{other.source} is mounted on {other.mount_point}"))
    return found


def holders_of_image(path: Path | str) -> list[Holder]:
    """Who already uses the image file or block device at `path`; OSError when there is none."""
    canonical = canonical_path(path)
    status = os.stat(canonical)
    found = [*_snapfs_on_image(canonical, status), *_loops_on_image(canonical, status)]
    if stat.S_ISBLK(status.st_mode):
        found += _uses_of_device(status.st_rdev)
    else:
        found += _swap_on_file(status)
    # A snapfs that is named by its mounts need not be named again by the locks of each of its processes.
    return (
        found if any(holder.kind == "snapfs" for holder in found) else [*found, *_locks_on_image(canonical, status)]
    )


def owners_of_image(path: Path) -> list[Holder]:
    """Of those, who has the whole of it for itself: snapfs, or whoever has locked it. Not mounts of its parts."""
    canonical = canonical_path(path)
    status = os.stat(canonical)
    return _snapfs_on_image(canonical, status) or _locks_on_image(canonical, status)


def _snapfs_on_image(path: Path, status: os.stat_result) -> list[Holder]:
    points = [str(mount.mount_point) for mount in believed_mounts() if _is_source(Path(mount.source), path, status)]
    if not points:
        return []
    return [Holder("snapfs", f"snapfs shows it on {' and '.join(dict.fromkeys(points))}")]


def _is_source(source: Path, path: Path, status: os.stat_result) -> bool:
    if source == path:
        return True
    if not source.is_absolute() or _may_be_silent(source):
        return False
    try:
        return os.path.samestat(os.stat(source), status)
    except OSError:
        return False


def _may_be_silent(path: Path) -> bool:
    mount = find_mount(path)
    return mount is not None and mount.may_be_silent


def _loops_on_image(path: Path, status: os.stat_result) -> list[Holder]:
    return [_loop_holder(loop.block_device) for loop in loop_devices() if loop.is_on(path, status)]


def _uses_of_device(rdev: int) -> list[Holder]:
    device = block_devices.block_device_of_number(rdev)
    if device is None:
        return []
    stacked = stacked_on(device)
    found = []
    for one in stacked:
        for use in uses_of([one]):
            kind: HolderKind = "swap" if use == "used as swap" else "mount"
            found.append(Holder(kind, f"it is {use}" if one is stacked[0] else f"{one.path} is {use}"))
    built = [upper for upper in stacked[1:] if _is_built_on_another(upper)]
    return found + [Holder("device", f"{upper.path} is built on it") for upper in built]


def _swap_on_file(status: os.stat_result) -> list[Holder]:
    for area in block_devices.swap_areas():
        try:
            same = os.path.samestat(os.stat(area), status)
        except OSError:
            continue
        if same:
            return [Holder("swap", "it is used as swap")]
    return []


def _locks_on_image(path: Path, status: os.stat_result) -> list[Holder]:
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        return []  # opening a FIFO would wait for its other end
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return []
    try:
        return lock_holders(fd)
    finally:
        os.close(fd)
