"""Devices that hold only a part of a filesystem on another device: an external journal or log, a realtime part.

Such a device is quiet when its owner is frozen, and only then. A btrfs on several devices is one filesystem by sysfs,
and is looked for there.

Source: the kernel's fs/jbd2/journal.c (/proc/fs/jbd2 names an internal journal by device and inode, an external one
by its device alone), fs/ext4/sysfs.c (`journal_task`), xfs(5) (options `logdev` and `rtdev`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapfs.system.block_devices import BlockDevice, block_device
from snapfs.system.kernel_text import kernel_value
from snapfs.system.mounts import Mount

_JBD2: Final = Path("/proc/fs/jbd2")
_SYS_EXT4: Final = Path("/sys/fs/ext4")
_COMM_BYTES: Final = 15  # the kernel cuts the names of its threads
_UNSEEN: Final = "a device whose mounts cannot be seen from here"


@dataclass(frozen=True, slots=True)
class Part:
    """`path` holds the `what` ("journal", "log", "realtime part") of the filesystem on the device `owner`.

    `owner` is None where it cannot be seen; `is_read_only` when every mount of it is.
    """

    path: Path
    what: str
    fstype: str
    owner: tuple[int, int] | None
    owner_name: str
    is_read_only: bool


def part_on(device: BlockDevice, mounts: Sequence[Mount]) -> Part | None:
    """What part of a mounted filesystem is on `device`; None when none is."""
    if (_JBD2 / device.name).is_dir():
        return _part(device, "journal", "ext4", _owner_of_journal(device), mounts)
    for mount in mounts:
        if mount.fstype == "xfs":
            for option, what in (("logdev", "log"), ("rtdev", "realtime part")):
                if _is_node_of(mount.option(option), device):
                    return _part(device, what, "xfs", mount.device, mounts)
    return None


def _owner_of_journal(device: BlockDevice) -> tuple[int, int] | None:
    thread = os.fsencode(f"jbd2/{device.name}")[:_COMM_BYTES]
    for task in _SYS_EXT4.glob("*/journal_task"):
        try:
            pid = int(kernel_value(task))
            if kernel_value(f"/proc/{pid}/comm") == thread:
                return block_device(task.parent.name).device
        except (OSError, ValueError):  # unmounted meanwhile, or without a journal
            continue
    return None


def _is_node_of(path: str | None, device: BlockDevice) -> bool:
    if not path or not path.startswith("/dev/"):
        return False
    try:
        rdev = os.stat(path).st_rdev
    except OSError:
        return False
    return (os.major(rdev), os.minor(rdev)) == device.device


def _part(
    device: BlockDevice, what: str, fstype: str, owner: tuple[int, int] | None, mounts: Sequence[Mount]
) -> Part:
    of_owner = [mount for mount in mounts if mount.device == owner]
    name = str(of_owner[0].mount_point) if of_owner else _UNSEEN
    is_read_only = bool(of_owner) and not any("rw" in mount.options for mount in of_owner)
    return Part(device.path, what, fstype, owner, name, is_read_only)
