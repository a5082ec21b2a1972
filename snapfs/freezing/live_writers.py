"""Who writes to the live file at a cut without going through a filesystem that the kernel has mounted.

A guest, a driver in user space, or a tool like mtools: the kernel cannot freeze what they have in mind, and many
formats do not say that they are in the middle of something.

Rules:
- The live file's server is the judge of who has the live file itself open: it counts the descriptors at the instant
  of the cut. Each loop device holds one. Whoever is left over is somebody else, seen or not.
- Who has a loop device, or a device on top of one, open is known from /proc alone, looked at before and after the
  cut. That shows only the processes that this user may see, and not who comes and goes in between; but only root
  may use these devices at all.
- A kernel filesystem holds its device without a descriptor, so what is frozen is never taken for a writer.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from snapfs.cut_facts import Writer
from snapfs.freezing.live_filesystems import Number, Volume, live_loops, live_volumes
from snapfs.system.block_devices import SYS_BLOCK, LoopDevice
from snapfs.system.mounts import namespace_mounts, read_mounts
from snapfs.system.open_files import OpenFile, device_of_fd, mount_ids_of_device, process_name, processes_that_write

_UNSEEN: Final = "a process that cannot be seen from here"
_NODE_FSTYPES: Final = frozenset({"devtmpfs", "tmpfs"})


@dataclass(slots=True)
class WriterSight:
    """What was seen at one moment: writers of the live file, of devices on it, and its writable loop devices."""

    of_file: set[str] = field(default_factory=set)
    of_devices: set[Writer] = field(default_factory=set)
    loop_count: int = 0


def look_for_writers(live_fd: int) -> WriterSight:
    """Look now; `live_fd` is open on the live file."""
    status = os.fstat(live_fd)
    loops = live_loops((status.st_dev, status.st_ino))
    volumes = {volume.device.device: volume for volume in live_volumes(loops)}
    mount_ids = mount_ids_of_device(device_of_fd(live_fd))
    node_mounts = _node_mounts() if volumes else set()
    sight = WriterSight(loop_count=sum(map(_is_writable, loops)))
    for file in processes_that_write():
        if file.inode == status.st_ino and file.mount_id in mount_ids:
            sight.of_file.add(process_name(file.pid))
        elif volumes and (file.target.startswith("/dev/") or file.mount_id in node_mounts):
            volume = volumes.get(_block_number(file))
            if volume is not None:
                sight.of_devices.add(_writer_of(volume, file))
    return sight


def writers_at_cut(before: WriterSight, after: WriterSight, open_for_writing: int) -> list[Writer]:
    """Who wrote at the cut, at which the server counted `open_for_writing` descriptors of the live file."""
    names = before.of_file & after.of_file
    if open_for_writing > min(before.loop_count, after.loop_count):
        names = before.of_file | after.of_file or {_UNSEEN}
    return [*map(Writer, sorted(names)), *_sorted(before.of_devices | after.of_devices)]


def _sorted(writers: set[Writer]) -> Sequence[Writer]:
    return sorted(writers, key=lambda writer: (writer.name, writer.offset or 0, writer.length or 0))


def _is_writable(loop: LoopDevice) -> bool:
    try:
        return (SYS_BLOCK / loop.block_device.name / "ro").read_text().strip() == "0"
    except OSError:
        return False


def _node_mounts() -> set[int]:
    """The mounts where device nodes may lie: to ask about a file there waits for nobody."""
    everywhere = [read_mounts(), *(mounts for _, mounts in namespace_mounts())]
    return {mount.mount_id for mounts in everywhere for mount in mounts if mount.fstype in _NODE_FSTYPES}


def _block_number(file: OpenFile) -> Number:
    try:
        status = os.stat(f"/proc/{file.pid}/fd/{file.fd}")
    except OSError:
        return 0, 0
    return (os.major(status.st_rdev), os.minor(status.st_rdev)) if stat.S_ISBLK(status.st_mode) else (0, 0)


def _writer_of(volume: Volume, file: OpenFile) -> Writer:
    if volume.offset is None:
        return Writer(process_name(file.pid))
    return Writer(process_name(file.pid), volume.offset, volume.length)
