"""Never write over an image or a store that somebody has.

An image may be reached by many names: itself, a hard link, a symbolic link, a bind mount, a view of it, a loop
device or partition over any of these. So names are made canonical, files and devices compared by their numbers,
and a block device is asked what it lies on:

    /dev/loop3p1  ->  /dev/loop3  ->  /mnt/live/disk.img, a view           refused
    /dev/dm-0     ->  /dev/loop4  ->  /srv/disk.img, locked by snapfs      refused

A store is known by what is in it, whatever it is called and whoever has mounted what it belongs to.
What is found here is for saying who; the locks and O_EXCL at opening are the judge (see `in_place`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cow import CONTROL_MAGIC, CONTROL_NAME, HEADER_MAGIC, HEADER_NAME
from snapfs.errors import BusyError, SnapfsError
from snapfs.system.block_devices import (
    BlockDevice,
    LoopDevice,
    block_device_of_number,
    lies_on,
    loop_devices,
    loop_of,
    loop_range,
)
from snapfs.system.file_kinds import open_readable
from snapfs.system.holders import Holder, describe, holders_of_image, owners_of_image
from snapfs.system.mounts import SNAPFS_TYPE, find_mount, namespace_mounts, read_mounts

_MAGICS: Final = {HEADER_NAME: HEADER_MAGIC, CONTROL_NAME: CONTROL_MAGIC.to_bytes(8, "little")}


def refuse_views_and_stores(named: Path, real: Path) -> None:
    """BusyError when canonical `real`, which need not exist, is in a view of snapfs or in a store."""
    mount = find_mount(real)
    if mount is not None and mount.fstype == SNAPFS_TYPE:
        raise BusyError(f"{named} is in a view of snapfs, {mount.mount_point}; name a place elsewhere.", path=named)
    for directory in (real, *real.parents):
        if is_store(directory):
            raise BusyError(
                f"{named} is inside {directory}, the store of a snapshot; name a place elsewhere.", path=named
            )


def is_store(directory: Path) -> bool:
    """Whether the directory holds a snapfs store, by the beginnings of the files in it."""
    return any(_begins_with(directory / name, magic) for name, magic in _MAGICS.items())


def _begins_with(path: Path, magic: bytes) -> bool:
    try:
        fd = open_readable(path, "", flags=os.O_NOFOLLOW)
    except (OSError, SnapfsError):
        return False
    try:
        return os.pread(fd, len(magic), 0) == magic
    except OSError:
        return False
    finally:
        os.close(fd)


def refuse_in_use(named: Path, real: Path, status: os.stat_result) -> None:
    """BusyError when somebody has the file or block device at canonical `real`, or what the device lies on."""
    found = holders_of_image(real)
    if stat.S_ISBLK(status.st_mode):
        found += _holders_below(status.st_rdev)
    if found:
        raise BusyError(
            f"{named} is in use: {describe(found)}; end that, or name another place.",
            path=named,
            holders=[holder.description for holder in found],
        )


def lies_on_same(status: os.stat_result, other: os.stat_result) -> bool:
    """Whether writing to the first file or block device changes the second one, directly or as its disk or file."""
    if os.path.samestat(status, other) or _same_device(status, other):
        return True
    if not stat.S_ISBLK(status.st_mode):
        return False
    for device in _devices_below(status.st_rdev):
        loop = loop_of(device)
        if os.makedev(*device.device) == other.st_rdev or (loop is not None and _is_on(loop, other)):
            return True
    return False


def _same_device(status: os.stat_result, other: os.stat_result) -> bool:
    return stat.S_ISBLK(status.st_mode) and stat.S_ISBLK(other.st_mode) and status.st_rdev == other.st_rdev


def _is_on(loop: LoopDevice, other: os.stat_result) -> bool:
    return (loop.backing_device, loop.backing_inode) == (other.st_dev, other.st_ino)


def _devices_below(rdev: int) -> Iterator[BlockDevice]:
    """The device itself, its disk, and what it is built on, from above downwards."""
    device = block_device_of_number(rdev)
    todo = [] if device is None else [device]
    seen: set[str] = set()
    while todo:
        one = todo.pop(0)
        if one.name not in seen:
            seen.add(one.name)
            yield one
            todo += lies_on(one)


def _holders_below(rdev: int) -> list[Holder]:
    found: list[Holder] = []
    for device in _devices_below(rdev):
        loop = loop_of(device)
        if os.makedev(*device.device) != rdev:
            found += _owners(device.path)
        if loop is not None:
            found += _holders_of_backing(loop)
    return found


def _owners(path: Path) -> list[Holder]:
    try:
        return owners_of_image(path)
    except OSError:
        return []


def _holders_of_backing(loop: LoopDevice) -> list[Holder]:
    path = loop.backing_path
    device = loop.block_device.path
    mount = find_mount(path)
    if (mount is not None and mount.fstype == SNAPFS_TYPE) or loop.backing_device in _view_devices():
        return [Holder("snapfs", f"{device} is over {path}, a view of snapfs")]
    if any(is_store(directory) for directory in path.parents):
        return [Holder("snapfs", f"{device} is over {path}, in the store of a snapshot")]
    try:
        if (loop.backing_device, loop.backing_inode) != (os.stat(path).st_dev, os.stat(path).st_ino):
            return []
        found = holders_of_image(path)
    except OSError:
        return []
    holders = [one for one in found if one.kind != "loop"] + _loops_beside(loop)
    return [
        Holder(one.kind, f"{path}, which {device} is over, is in use ({one.description})", one.pid) for one in holders
    ]


def _loops_beside(loop: LoopDevice) -> list[Holder]:
    """Other loop devices over the same bytes of the same file."""
    start, end = loop_range(loop)
    found = []
    for other in loop_devices():
        same = (other.backing_device, other.backing_inode) == (loop.backing_device, loop.backing_inode)
        if same and other.block_device != loop.block_device:
            other_start, other_end = loop_range(other)
            if start < other_end and other_start < end:
                found.append(Holder("loop", f"loop device {other.block_device.path}"))
    return found


def _view_devices() -> set[int]:
    """The numbers of the filesystems that are views, in every mount namespace that can be seen."""
    everywhere = [read_mounts(), *(mounts for _, mounts in namespace_mounts())]
    return {os.makedev(*mount.device) for mounts in everywhere for mount in mounts if mount.fstype == SNAPFS_TYPE}
