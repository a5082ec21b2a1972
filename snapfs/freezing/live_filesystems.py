"""Which filesystems live in the image and are mounted through its live view.

    live file <- loop devices <- partitions, devices built on them <- filesystems <- files <- loop devices ...

Source: /sys/class/block (the kernel's Documentation/ABI), /sys/fs/btrfs, loop(4), proc(5).

Rules:
- A loop device belongs to the live file by device and inode. The path that sysfs shows may be of another mount
  namespace, or that of a bind mount; who asks the driver asks the view's server, so a child process does.
- A filesystem mounted several times, in whatever namespace, is one filesystem: its device number says so.
- A filesystem on a file of another one must be frozen before that one: what its freezing writes, the other one
  still has to take. So the deepest come first.
- A device that holds only the journal or the log of a filesystem is listed like one: it is quiet when its owner,
  which may lie elsewhere, is.
- A filesystem is opened only through a mount that leads to it; one that is hidden under another mount does not.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from snapfs.freezing.live_parts import Part, part_on
from snapfs.system.block_devices import (
    SYS_BLOCK,
    BlockDevice,
    LoopDevice,
    asked_loop_identity,
    block_device,
    device_bytes,
    loop_devices,
    partition_offset,
    stacked_on,
)
from snapfs.system.descriptors import path_of
from snapfs.system.kernel_text import kernel_lines
from snapfs.system.mounts import SNAPFS_TYPE, Mount, find_mount, namespace_mounts, read_mounts

_MAX_DEPTH: Final = 8  # filesystems on files of filesystems ...
_SYS_FS: Final = Path("/sys/fs")

Number = tuple[int, int]


@dataclass(frozen=True, slots=True)
class MountPlace:
    """A way to a filesystem: `path` can be opened from here, and leads there if the mount there has `mount_id`."""

    path: Path
    mount_id: int


@dataclass(slots=True)
class LiveFilesystem:
    """One mounted filesystem in the image. `offset` is where it begins in the image, None where that is not one
    place; `depth` is 0 on the image itself, and `host` the device of the filesystem that holds its backing file.
    Without `places` it is in use, but no mount of it can be seen. `part` tells a device that has no filesystem."""

    device: Number
    fstype: str
    offset: int | None
    depth: int
    host: Number | None
    read_only: bool = True
    places: list[MountPlace] = field(default_factory=list)
    part: Part | None = None

    @property
    def name(self) -> str:
        """Its first mount point, for people."""
        if self.part is not None:
            return str(self.part.path)
        return str(self.places[0].path) if self.places else f"/dev/block/{self.device[0]}:{self.device[1]}"


@dataclass(frozen=True, slots=True)
class Volume:
    """A block device in the image that may hold a filesystem: `length` bytes, None where that cannot be told."""

    device: BlockDevice
    offset: int | None
    host: Number | None
    length: int | None = None


def live_loops(view_file: tuple[int, int]) -> list[LoopDevice]:
    """The loop devices on the live file of that st_dev and st_ino."""
    return _loops_on_view(view_file, loop_devices())


def live_volumes(loops: Sequence[LoopDevice]) -> list[Volume]:
    """The loop devices, their partitions, and what is built on them."""
    return _volumes(loops, depth=0, host=None)


def find_live_filesystems(live_file: Path, identity: tuple[int, int] | None = None) -> list[LiveFilesystem]:
    """The filesystems mounted from `live_file`, in the order in which they have to be frozen.

    With its `identity` (st_dev, st_ino) nobody is asked for it, and the path need not lead to it any more.
    """
    mounts = list(_visible_mounts())
    loops = loop_devices()
    volumes = _volumes(_loops_on_view(identity or _identity_of(live_file), loops), depth=0, host=None)
    found: dict[Number, LiveFilesystem] = {}
    parts = _parts(volumes, [mount for mount, _ in mounts])
    for depth in range(_MAX_DEPTH):
        above = _mounted_from(volumes, mounts, depth, set(found))
        if not above:
            break
        found.update(above)
        volumes = [
            volume
            for filesystem in above.values()
            for volume in _volumes(_loops_on_files(filesystem, loops), depth + 1, filesystem.device)
        ]
    found.update({number: part for number, part in parts.items() if number not in found})
    for mount, place in mounts:
        if mount.fstype != SNAPFS_TYPE and Path(mount.source) == live_file and mount.device not in found:
            # A server of its own reads the file, as ntfs-3g does without a loop device.
            found[mount.device] = LiveFilesystem(mount.device, mount.fstype, None, 0, None, False, [place])
    return sorted(found.values(), key=lambda filesystem: -filesystem.depth)


def _visible_mounts() -> Iterator[tuple[Mount, MountPlace]]:
    """Every mount that can be seen, with the way to it from here."""
    for mount in read_mounts():
        yield mount, MountPlace(mount.mount_point, mount.mount_id)
    for pid, mounts in namespace_mounts():
        for mount in mounts:
            yield mount, MountPlace(Path(f"/proc/{pid}/root{mount.mount_point}"), mount.mount_id)


# --- loop devices and what is on them ------------------------------------------------------------------------


def _identity_of(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _loops_on_view(view_file: tuple[int, int], loops: Sequence[LoopDevice]) -> list[LoopDevice]:
    return [loop for loop in loops if _identity(loop) == view_file]


def _identity(loop: LoopDevice) -> tuple[int, int] | None:
    """st_dev and st_ino of the backing file."""
    if loop.backing_device is not None and loop.backing_inode is not None:
        return loop.backing_device, loop.backing_inode
    identity = asked_loop_identity(loop.block_device.path)
    return None if identity is None else identity[:2]


def _loops_on_files(filesystem: LiveFilesystem, loops: Sequence[LoopDevice]) -> list[LoopDevice]:
    """Loop devices on files of `filesystem`. The files of btrfs have another device number: there the path tells."""
    number = os.makedev(*filesystem.device)
    found = []
    for loop in loops:
        lies_on = find_mount(loop.backing_path)
        by_path = lies_on is not None and lies_on.device == filesystem.device
        if loop.backing_device == number or by_path:
            found.append(loop)
    return found


def _volumes(loops: Sequence[LoopDevice], depth: int, host: Number | None) -> list[Volume]:
    found = []
    for loop in loops:
        start = _read_int(SYS_BLOCK / loop.block_device.name / "loop" / "offset")
        for device in stacked_on(loop.block_device):
            offset = None if depth or start is None else _offset_in(loop.block_device, start, device)
            found.append(Volume(device, offset, host, device_bytes(device)))
    return found


def _offset_in(disk: BlockDevice, start: int, device: BlockDevice) -> int | None:
    """Where `device` begins in the image: the disk itself and its partitions are at one place, nothing else is."""
    if device.name == disk.name:
        return start
    offset = partition_offset(disk, device)
    return None if offset is None else start + offset


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


# --- filesystems on volumes ----------------------------------------------------------------------------------


def _mounted_from(
    volumes: Sequence[Volume], mounts: Sequence[tuple[Mount, MountPlace]], depth: int, known: set[Number]
) -> dict[Number, LiveFilesystem]:
    by_number = {volume.device.device: volume for volume in volumes}
    for volume in volumes:
        for name in _btrfs_devices(volume.device.name):
            by_number.setdefault(block_device(name).device, Volume(volume.device, None, volume.host))
    found: dict[Number, LiveFilesystem] = {}
    seen: set[str] = set()
    for mount, place in mounts:
        volume_ = _volume_of(mount, by_number)
        if volume_ is None or mount.device in known:
            continue
        seen.update((volume_.device.name, *_btrfs_devices(volume_.device.name)))
        filesystem = found.setdefault(
            mount.device, LiveFilesystem(mount.device, mount.fstype, volume_.offset, depth, volume_.host)
        )
        # A mount of a writable filesystem may itself be read-only; then both words are there.
        filesystem.read_only &= "rw" not in mount.options
        filesystem.places.append(place)
    for volume in volumes:
        fstype = _unseen_fstype(volume.device.name)
        if fstype and volume.device.name not in seen and volume.device.device not in known:
            found[volume.device.device] = LiveFilesystem(
                volume.device.device, fstype, volume.offset, depth, volume.host, read_only=False
            )
    return found


def _volume_of(mount: Mount, volumes: dict[Number, Volume]) -> Volume | None:
    """btrfs and others have a device number of their own; then the source tells the device."""
    if mount.device in volumes:
        return volumes[mount.device]
    if mount.device[0] != 0 or not mount.source.startswith("/dev/") or mount.fstype == SNAPFS_TYPE:
        return None
    try:
        status = os.stat(mount.source)
    except OSError:
        return None
    return volumes.get((os.major(status.st_rdev), os.minor(status.st_rdev))) if stat.S_ISBLK(status.st_mode) else None


def _btrfs_devices(name: str) -> list[str]:
    """All devices of the btrfs that has `name` among them; a mount names only one."""
    for directory in _SYS_FS.glob("btrfs/*/devices"):
        names = sorted(os.listdir(directory))
        if name in names:
            return names
    return []


def _unseen_fstype(name: str) -> str | None:
    """What filesystem the kernel has open on `name`, also when its mounts cannot be seen (any more)."""
    for fstype in ("ext4", "xfs"):
        if (_SYS_FS / fstype / name).is_dir():
            return fstype
    return "btrfs" if _btrfs_devices(name) else None


def _parts(volumes: Sequence[Volume], mounts: Sequence[Mount]) -> dict[Number, LiveFilesystem]:
    """Devices of the image that hold only a part of a mounted filesystem, which may be in the image or elsewhere."""
    found: dict[Number, LiveFilesystem] = {}
    for volume in volumes:
        part = part_on(volume.device, mounts)
        if part is not None:
            number, read_only = volume.device.device, part.is_read_only
            found[number] = LiveFilesystem(number, part.fstype, volume.offset, 0, volume.host, read_only, part=part)
    return found


# --- opening -------------------------------------------------------------------------------------------------


def open_filesystem(filesystem: LiveFilesystem) -> int | None:
    """A descriptor on `filesystem`; None when no mount of it can be reached."""
    for place in filesystem.places:
        try:
            fd = _open_place(place)
        except OSError:
            continue
        if fd is not None:
            return fd
    return None


def _open_place(place: MountPlace) -> int | None:
    path_fd = os.open(place.path, os.O_PATH | os.O_CLOEXEC)
    try:
        mode = os.fstat(path_fd).st_mode
        if _mount_id(path_fd) != place.mount_id or not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            return None
        return os.open(path_of(path_fd), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(path_fd)


def _mount_id(fd: int) -> int | None:
    for line in kernel_lines(f"/proc/self/fdinfo/{fd}"):
        if line.startswith(b"mnt_id:"):
            return int(line.split()[1])
    return None
