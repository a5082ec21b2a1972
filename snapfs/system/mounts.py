"""The mounted filesystems: which there are, whether one is dead, and how to get rid of it.

Source of what is mounted: /proc/PID/mountinfo, described in proc(5).

Rules:
- Nothing here asks the server of a snapfs mount, except `is_stale`. A dead server answers every stat(2) with
  ENOTCONN and a hung one never answers: so mount points are found in mountinfo, and a path is made canonical
  without touching the snapfs mounts on its way.
- A thread that waits for a hung server cannot be killed, and keeps its process from ending. So `is_stale`
  asks from a child process, and leaves that child behind when there is no answer in time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from snapfs.errors import BusyError, NotMountedError, PermissionDeniedError, SnapfsError
from snapfs.system import libc
from snapfs.system.asking import ANSWER_TIMEOUT_S, ask, become
from snapfs.system.kernel_text import kernel_lines, kernel_name

# What a FUSE mount whose servers have died answers to everything.
DEAD_VIEW_ERRORS: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED})

SNAPFS_TYPE: Final = "fuse.snapfs"
_FUSERMOUNT_TIMEOUT_S: Final = 60.0
_MAX_SYMLINKS: Final = 40  # as many as the kernel follows


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo. `device` is the filesystem's number, the same for all mounts of one filesystem;
    `root` is the directory of it that is seen at `mount_point` ("/" unless it is a bind mount of a part)."""

    mount_point: Path
    fstype: str
    source: str
    device: tuple[int, int]
    options: tuple[str, ...]
    mount_id: int
    parent_id: int
    root: str

    @property
    def user_id(self) -> int | None:
        """The user who mounted it, as the kernel says; None where the kernel does not say so (all but FUSE)."""
        value = self.option("user_id")
        return int(value) if value else None

    @property
    def owner(self) -> tuple[int, int] | None:
        """The same with his group."""
        user, group = self.option("user_id"), self.option("group_id")
        return (int(user), int(group)) if user and group else None

    @property
    def allows_others(self) -> bool:
        """Whether its server answers others than the owner; without, not even root."""
        return self.option("allow_other") is not None

    @property
    def may_be_silent(self) -> bool:
        """Whether it is not to be touched: a snapfs, or FUSE of a user who is neither root nor this one."""
        return self.fstype == SNAPFS_TYPE or self.user_id not in (None, 0, os.geteuid())

    def option(self, name: str) -> str | None:
        """The value of `name=value` in the options, "" for a bare `name`, None when it is not there."""
        for option in self.options:
            key, _, value = option.partition("=")
            if key == name:
                return value
        return None


def read_mounts(pid: int | str = "self") -> list[Mount]:
    """All mounts that process `pid` sees, in the order of mountinfo; OSError when the process is gone."""
    return [parse_mountinfo_line(line) for line in kernel_lines(f"/proc/{pid}/mountinfo")]


def parse_mountinfo_line(line: bytes) -> Mount:
    """`36 35 98:0 /root /point rw,noatime master:1 - ext3 /dev/root rw`, blanks in names octal-escaped."""
    before, _, after = line.partition(b" - ")
    mount_id, parent_id, device, root, mount_point, options = before.split(b" ")[:6]
    fstype, source, super_options = [*after.split(b" "), b"", b"", b""][:3]
    major, _, minor = device.partition(b":")
    both = [kernel_name(option) for option in (options + b"," + super_options).split(b",") if option]
    return Mount(
        mount_point=Path(kernel_name(mount_point)),
        fstype=kernel_name(fstype),
        source=kernel_name(source),
        device=(int(major), int(minor)),
        options=tuple(dict.fromkeys(both)),
        mount_id=int(mount_id),
        parent_id=int(parent_id),
        root=kernel_name(root),
    )


def snapfs_mounts() -> list[Mount]:
    """The mounts that call themselves snapfs, dead ones too; whose they are decides what is believed of them."""
    return [mount for mount in read_mounts() if mount.fstype == SNAPFS_TYPE]


def find_mount(path: Path | str) -> Mount | None:
    """The mount that `path` lies on; for a mount point the topmost mount there."""
    mounts = read_mounts()
    return _mount_over(canonical_path(path, mounts), mounts)


def is_mount_point(path: Path | str) -> bool:
    """Whether something is mounted on `path` itself, dead or alive."""
    mounts = read_mounts()
    canonical = canonical_path(path, mounts)
    mount = _mount_over(canonical, mounts)
    return mount is not None and mount.mount_point == canonical


def _mount_over(path: Path, mounts: Sequence[Mount]) -> Mount | None:
    """Follows the tree of mounts down `path`, so that a mount hidden under a later one is not taken."""
    current: Mount | None = None
    for prefix in [*reversed(path.parents), path]:
        while (upper := _mounted_at(prefix, current, mounts)) is not None:
            current = upper
    return current


def _mounted_at(point: Path, on: Mount | None, mounts: Sequence[Mount]) -> Mount | None:
    for mount in mounts:
        if mount.mount_point == point and (on is None or mount.parent_id == on.mount_id != mount.mount_id):
            return mount
    return None


def canonical_path(path: Path | str, mounts: Sequence[Mount] | None = None) -> Path:
    """`path` absolute and without symbolic links; on the way no mount is touched that may be silent."""
    all_mounts = read_mounts() if mounts is None else mounts
    untouchable = {mount.mount_point for mount in all_mounts if mount.may_be_silent}
    done = Path("/")
    absolute = Path(path) if os.path.isabs(path) else Path(os.getcwd(), path)
    todo = list(reversed(absolute.parts[1:]))
    symlinks_left = _MAX_SYMLINKS
    while todo:
        name = todo.pop()
        if name == "..":
            done = done.parent
            continue
        target = None if _is_below(done / name, untouchable) else _link_target(done / name)
        if target is None or symlinks_left == 0:
            done = done / name
            continue
        symlinks_left -= 1
        if target.is_absolute():
            done = Path("/")
        todo.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))
    return done


def _is_below(path: Path, directories: set[Path]) -> bool:
    return bool(directories) and (path in directories or not directories.isdisjoint(path.parents))


def _link_target(path: Path) -> Path | None:
    try:
        return Path(os.readlink(path))
    except OSError:
        return None


def namespace_mounts() -> Iterator[tuple[int, list[Mount]]]:
    """(a process in it, its mounts) for every other mount namespace that this user may look into."""
    seen = {_namespace("self")}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        namespace = _namespace(name)
        if namespace is None or namespace in seen:
            continue
        try:
            yield int(name), read_mounts(name)
        except OSError:
            continue
        seen.add(namespace)


def _namespace(pid: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return None


def is_stale(mount: Mount, timeout_s: float = ANSWER_TIMEOUT_S) -> bool:
    """Whether the server of a FUSE mount is gone. A server that does not answer in time is hung, not gone."""
    return ask(partial(_ask_filesystem, mount), timeout_s).error in DEAD_VIEW_ERRORS


def _ask_filesystem(mount: Mount) -> bytes:
    """In a child. Opening with O_PATH does not ask the server, so root opens and the mount's user asks. The
    directory's attributes the kernel may know for an hour after the server's death; for these it always asks."""
    fd = os.open(mount.mount_point, os.O_PATH)
    if not mount.allows_others:
        become(mount.owner)
    os.fstatvfs(fd)
    return b""


def unmount(path: Path | str, lazy: bool = False) -> None:
    """Unmount what is on `path`; `lazy` hides it at once and ends it when nobody uses it any more.

    `BusyError`: somebody uses it. `NotMountedError`: nothing is mounted there. Else `SnapfsError`.
    """
    canonical = canonical_path(path)
    if not is_mount_point(canonical):
        raise NotMountedError(f"{path} is not mounted; nothing was changed.", path=path)
    if os.geteuid() == 0:
        try:
            libc.umount2(canonical, libc.UMOUNT_NOFOLLOW | (libc.MNT_DETACH if lazy else 0))
            return
        except OSError as error:
            if error.errno != errno.EPERM:
                raise _unmount_error(path, error.errno or 0, error.strerror or "unknown error") from error
    _fusermount(path, canonical, lazy)


def clear_stale(*points: Path) -> list[Path]:
    """Unmount what killed instances left at these mount points; where something was."""
    cleared = []
    for found in snapfs_mounts():
        if found.mount_point in points and is_stale(found):
            with contextlib.suppress(SnapfsError):
                unmount(found.mount_point, lazy=True)
                cleared.append(found.mount_point)
    return cleared


def _fusermount(path: Path | str, canonical: Path, lazy: bool) -> None:
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", os.fspath(canonical)]
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=_FUSERMOUNT_TIMEOUT_S
        )
    except FileNotFoundError as error:
        raise SnapfsError(
            f"{path} cannot be unmounted without root, because fusermount3 is missing; install fuse3.",
            path=path,
        ) from error
    except subprocess.TimeoutExpired as error:
        raise SnapfsError(
            f"{path} cannot be unmounted, because fusermount3 does not come to an end; try fusermount3 -u -z {path}.",
            path=path,
        ) from error
    if done.returncode == 0:
        return
    if not is_mount_point(canonical):
        raise NotMountedError(f"{path} is not mounted any more; nothing was changed.", path=path)
    reason = done.stderr.strip().rpartition(": ")[2] or "unknown error"
    errnos = {os.strerror(number): number for number in (errno.EBUSY, errno.EPERM)}
    number = errno.EPERM if "not found in" in done.stderr else errnos.get(reason, 0)
    raise _unmount_error(path, number, reason)


def _unmount_error(path: Path | str, number: int, reason: str) -> SnapfsError:
    if number == errno.EBUSY:
        return BusyError(f"{path} is busy; close what uses it and try again.", path=path)
    if number in (errno.EINVAL, errno.ENOENT):
        return NotMountedError(f"{path} is not mounted; nothing was changed.", path=path)
    if number in (errno.EPERM, errno.EACCES):
        return PermissionDeniedError(
            f"{path} was mounted by another user; only that user or root can unmount it.", path=path
        )
    return SnapfsError(f"{path} cannot be unmounted: {reason}; try umount -l {path} as root.", path=path)


def open_beside(path: Path) -> int:
    """Open a file for reading; where permitted, without keeping its mount from being unmounted."""
    try:
        tree_fd = libc.open_tree(path.parent, libc.OPEN_TREE_CLONE | os.O_CLOEXEC)
    except OSError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.open(path.name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=tree_fd)
    finally:
        os.close(tree_fd)


def set_read_ahead(device: tuple[int, int], kib: int) -> bool:
    """Let the kernel read `kib` KiB ahead on this filesystem. False where not permitted: slower, no worse."""
    try:
        Path(f"/sys/class/bdi/{device[0]}:{device[1]}/read_ahead_kb").write_text(f"{kib}\n")
    except OSError:
        return False
    return True
