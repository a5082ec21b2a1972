"""Loop devices and what is stacked on a block device: partitions, device-mapper, MD, mounts, swap.

Source: /sys/class/block in the kernel's Documentation/ABI/{stable,testing}/sysfs-block, loop(4), proc(5).

Rules:
- A loop device belongs to a file by the file's device and inode, not by the path: that may have been renamed, or
  be of another mount namespace. Only when the path already says that the file is on a snapfs mount is the path
  believed, because the kernel would have to ask the mount's server, who may hang.
- Without the permission to open /dev/loopN (an ordinary user) the path in sysfs is all there is.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from snapfs.options import format_size
from snapfs.system.asking import ask
from snapfs.system.descriptors import DELETED
from snapfs.system.kernel_text import kernel_lines, kernel_name, kernel_value
from snapfs.system.mounts import SNAPFS_TYPE, Mount, find_mount, namespace_mounts, read_mounts

SYS_BLOCK: Final = Path("/sys/class/block")
_SWAPS: Final = Path("/proc/swaps")
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_INFO64: Final = struct.Struct("=5Q4I64s64s32s2Q")
_SECTOR_BYTES: Final = 512  # in which sysfs counts, whatever the device has
_MAX_BYTES: Final = (1 << 63) - 1
# How sysfs calls a file that is a mount of its own, when that is in no directory any more: nothing else is a file.
DETACHED: Final = Path("/")


@dataclass(frozen=True)
class BlockDevice:
    """A block device by its kernel name, node and number."""

    name: str
    path: Path
    device: tuple[int, int]


@dataclass(frozen=True)
class LoopDevice:
    """A loop device in use. `backing_path` as sysfs shows it; the numbers are None where they may not be asked."""

    block_device: BlockDevice
    backing_path: Path
    backing_device: int | None
    backing_inode: int | None
    backing_rdev: int | None

    def is_on(self, path: Path, status: os.stat_result) -> bool:
        """Whether this loop device reads and writes the file or block device at canonical `path`."""
        if self.backing_inode is None:
            return self.backing_path == path
        same_inode = (self.backing_device, self.backing_inode) == (status.st_dev, status.st_ino)
        return same_inode or (status.st_rdev != 0 and self.backing_rdev == status.st_rdev)


def block_device(name: str) -> BlockDevice:
    """The block device of the kernel's `name`; OSError when there is none."""
    major, _, minor = kernel_value(SYS_BLOCK / name / "dev").partition(b":")
    mapper_name = _read_or_empty(SYS_BLOCK / name / "dm" / "name")
    node = Path("/dev/mapper", mapper_name) if mapper_name else Path("/dev", name.replace("!", "/"))
    return BlockDevice(name, node, (int(major), int(minor)))


def block_device_of_number(rdev: int) -> BlockDevice | None:
    """The block device with the number `rdev` (st_rdev of its node)."""
    link = Path(f"/sys/dev/block/{os.major(rdev)}:{os.minor(rdev)}")
    try:
        return block_device(Path(os.readlink(link)).name)
    except OSError:
        return None


def loop_devices() -> list[LoopDevice]:
    """The loop devices that have a backing file."""
    found = [_loop_in(directory) for directory in sorted(SYS_BLOCK.glob("loop*/loop"))]
    return [loop for loop in found if loop is not None]


def loop_of(device: BlockDevice) -> LoopDevice | None:
    """`device` as a loop device; None when it is none, or has no backing file."""
    return _loop_in(SYS_BLOCK / device.name / "loop")


def _loop_in(directory: Path) -> LoopDevice | None:
    backing = _read_or_empty(directory / "backing_file").removesuffix(DELETED)
    if not backing:
        return None
    try:
        device = block_device(directory.parent.name)
    except OSError:
        return None
    if Path(backing) == DETACHED:
        # Nobody names it, and whoever serves it need not be asked.
        return LoopDevice(device, DETACHED, None, None, None)
    identity = _identity(device.path, find_mount(backing) if os.path.lexists(backing) else None)
    return LoopDevice(device, Path(backing), *(identity or (None, None, None)))


def loop_range(loop: LoopDevice) -> tuple[int, int]:
    """(offset, end) in bytes of the part of its file that a loop device shows; the end of the file may be before."""
    directory = SYS_BLOCK / loop.block_device.name / "loop"
    offset = int(_read_or_empty(directory / "offset") or 0)
    limit = int(_read_or_empty(directory / "sizelimit") or 0)
    return offset, offset + limit if limit else _MAX_BYTES


def lies_on(device: BlockDevice) -> list[BlockDevice]:
    """What `device` is a part of or is built on: the disk of a partition, what device-mapper or MD use."""
    directory = SYS_BLOCK / device.name
    names = sorted(path.name for path in directory.glob("slaves/*"))
    if (directory / "partition").exists():
        names.append(directory.resolve().parent.name)
    found = []
    for name in names:
        with contextlib.suppress(OSError):
            found.append(block_device(name))
    return found


def device_bytes(device: BlockDevice) -> int | None:
    """Its size without opening it; None when it is gone."""
    sectors = _read_or_empty(SYS_BLOCK / device.name / "size")
    return int(sectors) * _SECTOR_BYTES if sectors else None


def partition_offset(disk: BlockDevice, device: BlockDevice) -> int | None:
    """Where `device` begins on `disk`, in bytes; None when it is no partition of it."""
    if not (SYS_BLOCK / disk.name / device.name / "partition").exists():
        return None
    sector_no = _read_or_empty(SYS_BLOCK / device.name / "start")
    return int(sector_no) * _SECTOR_BYTES if sector_no else None


def device_text(device: BlockDevice) -> str:
    """What people call it: "8 MiB, over /srv/disk.img", "500 GiB, Samsung SSD 870"."""
    size = format_size(device_bytes(device) or 0)
    loop = loop_of(device)
    if loop is not None:
        return f"{size}, over {loop.backing_path}"
    disk = (SYS_BLOCK / device.name).resolve()
    facts = [" ".join(_read_or_empty(place / "device" / "model").split()) for place in (disk, disk.parent)]
    return ", ".join([size, *[fact for fact in facts if fact][:1]])


def _identity(node: Path, mount: Mount | None) -> tuple[int, int, int] | None:
    """The numbers of the backing file, as far as they can be had without waiting for a server that hangs: a file
    that is not to be seen from here may be on anything."""
    if mount is not None and mount.user_id is None:
        return loop_identity(node)
    if mount is not None and mount.fstype == SNAPFS_TYPE:
        return None
    return asked_loop_identity(node)


def asked_loop_identity(node: Path) -> tuple[int, int, int] | None:
    """As `loop_identity`, from a child: the server of a file may hang, and would take whoever asks with it."""
    numbers = (ask(partial(_told_identity, node)).data or b"").split()
    return (int(numbers[0]), int(numbers[1]), int(numbers[2])) if len(numbers) == 3 else None


def _told_identity(node: Path) -> bytes:
    identity = loop_identity(node)
    return b"" if identity is None else b"%d %d %d" % identity


def loop_identity(node: Path) -> tuple[int, int, int] | None:
    """st_dev, st_ino and st_rdev of the backing file, from the driver, who may ask the file's server."""
    try:
        fd = os.open(node, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        answer = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64.size))
    except OSError:
        return None
    finally:
        os.close(fd)
    device, inode, rdevice = _LOOP_INFO64.unpack(answer)[:3]
    return device, inode, rdevice


def stacked_on(device: BlockDevice) -> list[BlockDevice]:
    """`device`, its partitions, and the devices built on any of them (device-mapper, MD), from below upwards."""
    found: dict[str, BlockDevice] = {}
    todo = [device.name]
    while todo:
        name = todo.pop(0)
        if name in found:
            continue
        try:
            found[name] = block_device(name)
        except OSError:
            continue
        directory = SYS_BLOCK / name
        todo += sorted(path.parent.name for path in directory.glob("*/partition"))
        todo += sorted(path.name for path in directory.glob("holders/*"))
    return list(found.values())


def uses_of(devices: Iterable[BlockDevice]) -> list[str]:
    """How the devices are in use: "mounted on /mnt/x", "mounted on /y by process 12", "used as swap"."""
    numbers = {device.device for device in devices}
    uses = [f"mounted on {point}" for point in _points(read_mounts(), numbers)]
    for pid, mounts in namespace_mounts():
        own = [f"mounted on {point} for process {pid}" for point in _points(mounts, numbers)]
        uses += own if not uses else []  # a namespace repeats the mounts of the one it was made from
    if any(_number_of_node(path) in numbers for path in swap_areas()):
        uses.append("used as swap")
    return uses


def mounts_of(devices: Iterable[BlockDevice]) -> list[Mount]:
    """The mounts, in this namespace, of filesystems that are on one of the devices."""
    numbers = {device.device for device in devices}
    return [mount for mount in read_mounts() if _is_mount_of(mount, numbers)]


def _points(mounts: Iterable[Mount], numbers: set[tuple[int, int]]) -> list[str]:
    return list(dict.fromkeys(str(mount.mount_point) for mount in mounts if _is_mount_of(mount, numbers)))


def _is_mount_of(mount: Mount, numbers: set[tuple[int, int]]) -> bool:
    """btrfs and others have a number of their own; then the source tells the device."""
    if mount.device in numbers:
        return True
    return mount.device[0] == 0 and mount.source.startswith("/dev/") and _number_of_node(mount.source) in numbers


def _number_of_node(path: str) -> tuple[int, int] | None:
    if not path.startswith("/dev/"):
        return None
    try:
        rdev = os.stat(path).st_rdev
    except OSError:
        return None
    return os.major(rdev), os.minor(rdev)


def swap_areas() -> list[str]:
    """Paths of the swap areas in use, devices and files."""
    try:
        lines = kernel_lines(_SWAPS)[1:]
    except OSError:
        return []
    return [kernel_name(line.split(b" ")[0].split(b"\t")[0]) for line in lines]


def _read_or_empty(path: Path) -> str:
    try:
        return os.fsdecode(kernel_value(path))
    except OSError:
        return ""
