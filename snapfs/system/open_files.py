"""Which processes use a mount or a file, as far as this user may see.

Source: /proc/PID/{fd,fdinfo,maps,cwd,root,exe}, described in proc(5).

Rules:
- No file is asked about with stat(2): a server that hangs would hang us. The kernel knows without the server on
  which mount a descriptor is (`mnt_id` in fdinfo) and on which filesystem a mapping is (the device in maps).
- A descriptor is of one file with ours when filesystem and inode number agree, whatever the path says: the path
  may be a hard link, of another mount namespace, or of a file renamed since.
- Processes that end meanwhile, or that this user may not look into, are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from snapfs.system.kernel_text import kernel_lines, kernel_name, kernel_value
from snapfs.system.mounts import Mount, namespace_mounts, read_mounts

HolderKind = Literal["process", "loop", "mount", "swap", "device", "lock", "snapfs"]

_MAX_NAMED_HOLDERS = 3  # more would make a sentence that nobody reads


@dataclass(frozen=True)
class Holder:
    """Who uses something. `description` continues the sentence "disk.img is in use: "."""

    kind: HolderKind
    description: str
    pid: int | None = None


@dataclass(frozen=True)
class OpenFile:
    """A descriptor of a process, as fdinfo shows it: `locks` are its lines on locks."""

    pid: int
    fd: str
    mount_id: int
    inode: int
    target: str
    flags: int
    locks: tuple[bytes, ...]

    @property
    def writes(self) -> bool:
        """Whether it was opened for writing."""
        return self.flags & os.O_ACCMODE != os.O_RDONLY


def describe(holders: Iterable[Holder]) -> str:
    """The holders in a row, for a sentence; the first few by name, the others by their number."""
    descriptions = list(dict.fromkeys(holder.description for holder in holders))
    named = ", ".join(descriptions[:_MAX_NAMED_HOLDERS])
    more = len(descriptions) - _MAX_NAMED_HOLDERS
    return f"{named} and {more} more" if more > 0 else named


def process_name(pid: int) -> str:
    """The process for people: "process 1234 (qemu-nbd)"."""
    try:
        name = kernel_value(f"/proc/{pid}/comm").decode(errors="replace")
    except OSError:
        return f"process {pid}"
    return f"process {pid} ({name})"


def mount_ids_of_device(device: tuple[int, int]) -> set[int]:
    """The ids of all mounts of one filesystem, in every mount namespace that can be seen."""
    everywhere = [read_mounts(), *(mounts for _, mounts in namespace_mounts())]
    return {mount.mount_id for mounts in everywhere for mount in mounts if mount.device == device}


def processes_using(mount: Mount) -> list[Holder]:
    """The processes that keep `mount`'s filesystem from being unmounted, each once, with one thing it does."""
    mount_ids = mount_ids_of_device(mount.device)
    holders = []
    for pid in _pids():
        use = _use_of_mounts(pid, mount_ids, mount.device)
        if use is not None:
            holders.append(Holder("process", f"{process_name(pid)} {use}", pid))
    return holders


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _use_of_mounts(pid: int, mount_ids: set[int], device: tuple[int, int]) -> str | None:
    for file in open_files(pid):
        if file.mount_id in mount_ids:
            return f"has {file.target} open"
    for link, verb in (("cwd", "works in"), ("root", "has its root in"), ("exe", "runs")):
        if _mount_id_of_link(pid, link) in mount_ids:
            return f"{verb} {_target(f'/proc/{pid}/{link}')}"
    mapped = _mapped_file(pid, device)
    return None if mapped is None else f"maps {mapped}"


def open_files(pid: int) -> Iterator[OpenFile]:
    """The descriptors of `pid` that are files with a path (no sockets, pipes and the like)."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names:
        target = _target(f"/proc/{pid}/fd/{name}")
        if target.startswith("/"):
            with suppress(OSError, KeyError, ValueError):
                yield _open_file(pid, name, target)


def _open_file(pid: int, fd: str, target: str) -> OpenFile:
    fields: dict[bytes, bytes] = {}
    locks = []
    for line in kernel_lines(f"/proc/{pid}/fdinfo/{fd}"):
        key, _, value = line.partition(b":")
        fields.setdefault(key, value.strip())
        if key == b"lock":
            locks.append(value.strip())
    mount_id, inode, flags = int(fields[b"mnt_id"]), int(fields[b"ino"]), int(fields[b"flags"], 8)
    return OpenFile(pid, fd, mount_id, inode, target, flags, tuple(locks))


def processes_with_file(fd: int) -> list[OpenFile]:
    """Every descriptor, of any other process, that is open on the file that our `fd` is open on."""
    inode = os.fstat(fd).st_ino
    mount_ids = mount_ids_of_device(device_of_fd(fd))
    return [
        file
        for pid in _pids()
        if pid != os.getpid()
        for file in open_files(pid)
        if file.inode == inode and file.mount_id in mount_ids
    ]


def processes_that_write() -> Iterator[OpenFile]:
    """Every descriptor of any other process that is open for writing on a file with a path."""
    for pid in _pids():
        if pid != os.getpid():
            yield from (file for file in open_files(pid) if file.writes)


def device_of_fd(fd: int) -> tuple[int, int]:
    """The filesystem of `fd` as mountinfo numbers it; where it differs from st_dev (btrfs) /proc uses this one."""
    mount_id = _open_file(os.getpid(), str(fd), "").mount_id
    for mount in read_mounts():
        if mount.mount_id == mount_id:
            return mount.device
    st_dev = os.fstat(fd).st_dev
    return os.major(st_dev), os.minor(st_dev)


def _mount_id_of_link(pid: int, link: str) -> int | None:
    """The mount that a link such as /proc/PID/cwd leads to: O_PATH follows it without asking the server."""
    try:
        fd = os.open(f"/proc/{pid}/{link}", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _open_file(os.getpid(), str(fd), "").mount_id
    except (OSError, KeyError):
        return None
    finally:
        os.close(fd)


def _mapped_file(pid: int, device: tuple[int, int]) -> str | None:
    """A file of the filesystem that `pid` maps: lines are "from-to perms offset major:minor inode path"."""
    wanted = b"%02x:%02x" % device
    try:
        with open(f"/proc/{pid}/maps", "rb") as file:
            for line in file:
                fields = line.removesuffix(b"\n").split(maxsplit=5)
                if fields[3] == wanted and fields[4] != b"0" and len(fields) == 6:
                    return kernel_name(fields[5])
    except OSError:
        pass
    return None


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""
