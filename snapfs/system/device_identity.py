"""Which disk a block device is: a text that stays the same across boots, ports and kernel names.

Sources: Documentation/ABI/{stable,testing}/sysfs-block* and sysfs-block-loop of the kernel (`wwid`, `serial`,
`dm/uuid`, `loop/backing_file`); the udev database in /run/udev/data, as `udevadm info` shows it.

Rules:
- What the disk itself says comes first, udev only for what sysfs does not show (USB sticks): udev may come later at
  the next boot, and the text must be the same then.
- A partition is its disk and its number. A loop device is its file and where in it it begins.
- None is an honest answer: such a device has only its number, which is another disk's after the next boot.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_SYS_DEVICES: Final = Path("/sys/dev/block")
_UDEV_DATA: Final = Path("/run/udev/data")
# Model and serial of a device are padded with blanks by many vendors.
_OWN_NAMES: Final = (
    ("dm", "dm/uuid"),
    ("wwid", "wwid"),
    ("wwid", "device/wwid"),
    ("serial", "serial"),
    ("serial", "device/serial"),
    ("cid", "device/cid"),
)
_UDEV_NAMES: Final = (("wwn", "ID_WWN_WITH_EXTENSION"), ("wwn", "ID_WWN"), ("serial", "ID_SERIAL"))


def device_identity(rdev: int, sys_devices: Path = _SYS_DEVICES, udev_data: Path = _UDEV_DATA) -> str | None:
    """The text for the device with this number (st_rdev), such as "wwid naa.5000c500a1b2c3d4-part2"."""
    number = f"{os.major(rdev)}:{os.minor(rdev)}"
    try:
        directory = (sys_devices / number).resolve(strict=True)
    except OSError:
        return None
    if partition := _text(directory / "partition"):
        disk = _identity(directory.parent, udev_data)
        return None if disk is None else f"{disk}-part{partition}"
    return _identity(directory, udev_data)


def attachment(rdev: int, sys_devices: Path = _SYS_DEVICES) -> str | None:
    """A text that no other disk has during this boot, for a device that has no identity."""
    directory = sys_devices / f"{os.major(rdev)}:{os.minor(rdev)}"
    try:
        directory = directory.resolve(strict=True)
    except OSError:
        return None
    sequence_no = _text(directory / "diskseq") or _text(directory.parent / "diskseq")
    return f"attached {sequence_no} {_text(directory / 'partition')}" if sequence_no else None


def _identity(directory: Path, udev_data: Path) -> str | None:
    if (directory / "loop").is_dir():
        backing, offset = _text(directory / "loop" / "backing_file"), _text(directory / "loop" / "offset")
        return f"loop {backing} {offset}"
    for kind, name in _OWN_NAMES:
        if text := _text(directory / name):
            return f"{kind} {text}"
    return _udev_identity(udev_data / f"b{_text(directory / 'dev')}")


def _udev_identity(file: Path) -> str | None:
    lines = (line.removeprefix("E:") for line in _text(file).splitlines() if line.startswith("E:"))
    properties = dict(line.split("=", 1) for line in lines if "=" in line)
    for kind, name in _UDEV_NAMES:
        if text := properties.get(name):
            return f"{kind} {text}"
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="surrogateescape").strip()
    except OSError:
        return ""
