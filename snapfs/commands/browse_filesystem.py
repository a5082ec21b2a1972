"""How a filesystem of a snapshot is mounted: read-only, from a device that nothing can be written to.

    plain           first: a filesystem that is at rest, unmounted or frozen for the cut, takes that
    without replay  when its journal, log or log tree would have to be replayed, which cannot be done here

Rules:
- Nothing is written anywhere: neither into the snapshot, which nobody can, nor into a second device. So a btrfs on
  several devices is refused: its others would be taken from whatever else is attached, such as the live view.
- What is mounted is what was asked for. Of a btrfs the kernel decides by UUID which one it is, and by the number of
  the device, which may have been another one's: that is forgotten first, and the kernel asked afterwards.
- Device files and setuid programs of the image mean nothing here.
- Only kinds that `usedmap` reads are mounted, and only where it is sure what they are.

Source: ext4(5), xfs(5), btrfs(5), and filesystems/*.rst in the kernel's Documentation.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapfs.errors import SnapfsError
from snapfs.system import libc
from snapfs.system.attached import attached
from snapfs.system.btrfs_control import forget_device
from snapfs.system.mounts import find_mount, unmount
from snapfs.usedmap.result import MapError, Region
from snapfs.usedmap.source import Source

FLAGS: Final = libc.MS_RDONLY | libc.MS_NOSUID | libc.MS_NODEV

# What the kernel answers where it would have to write for a replay; btrfs has the second.
_NO_REPLAY_ERRORS: Final = frozenset({errno.EROFS, errno.EIO})


def _always_loses(source: Source) -> bool:
    return True


def _xfs_loses(source: Source) -> bool:
    # Arithmetic on arrays: loaded for XFS alone.
    from snapfs.usedmap.xfs import needs_log

    try:
        return needs_log(source)
    except Exception:  # a bug of a parser must cost a word of warning, never the files
        return True


@dataclass(frozen=True)
class _Kind:
    """`plain` and `without_replay` are options of a mount; `loses` whether the second shows less than there was."""

    fstype: str
    plain: str = ""
    without_replay: str = ""
    loses: Callable[[Source], bool] = _always_loses


# The driver of ext4 mounts all three. A frozen XFS has a log of its superblock, which changes no file; its UUID is
# that of the live one beside it.
_EXT: Final = _Kind("ext4", "", "noload")
_KINDS: Final = {
    "ext2": _EXT,
    "ext3": _EXT,
    "ext4": _EXT,
    "xfs": _Kind("xfs", "nouuid", "nouuid,norecovery", _xfs_loses),
    "btrfs": _Kind("btrfs", "", "rescue=nologreplay"),
    "vfat": _Kind("vfat"),
    "exfat": _Kind("exfat"),
    "ntfs": _Kind("ntfs3"),
}

_WITHOUT_FILES: Final = {
    "swap": "it is swap space",
    "swsuspend": "it is a hibernated system",
    "LVM2_member": "it is a volume of LVM",
    "crypto_LUKS": "it is encrypted (LUKS)",
    "BitLocker": "it is encrypted (BitLocker)",
    "linux_raid_member": "it is a member of an MD array",
    "bcache": "it is a device of bcache",
    "jbd": "it is the journal of a filesystem elsewhere",
}


class NotShownError(Exception):
    """The filesystem is not mounted; `reason` is a clause about it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Shown:
    """A filesystem that is mounted, with these options; `is_behind` when a replay may be missing in what it shows."""

    options: str
    is_behind: bool


def why_not_shown(region: Region) -> str:
    """Why nobody tries to mount the region, as a clause; "" when it is to be tried."""
    if region.kind in _KINDS or region.kind == "unknown":
        return region.reason
    return _WITHOUT_FILES.get(region.kind, f"snapfs mounts no {region.kind}")


def show_filesystem(fd: int, image_bytes: int, region: Region, point: Path) -> Shown:
    """Mount the filesystem in `region` of the snapshot file `fd` on `point`. NotShownError: nothing is mounted."""
    kind = _KINDS[region.kind]
    source = Source(fd, image_bytes).window(region.offset, region.length)
    if region.kind == "btrfs":
        _check_one_device(source)
    with attached(fd, region.offset, region.length) as device:
        if region.kind == "btrfs":
            forget_device(device)
        shown = _mount(device, point, kind, source)
        if region.kind == "btrfs":
            _check_is_on(point, device)
    return shown


def _check_one_device(source: Source) -> None:
    from snapfs.usedmap.btrfs import device_count

    try:
        count = device_count(source)
    except MapError as error:
        raise NotShownError(f"the btrfs {error}") from error
    if count != 1:
        raise NotShownError(f"it lies on {count} devices, of which this is one")


def _mount(device: Path, point: Path, kind: _Kind, source: Source) -> Shown:
    try:
        libc.mount(device, point, kind.fstype, FLAGS, kind.plain)
        return Shown(_with_ro(kind.plain), is_behind=False)
    except OSError as error:
        if not kind.without_replay or error.errno not in _NO_REPLAY_ERRORS:
            raise _refusal(error, kind, point) from error
    is_behind = kind.loses(source)
    try:
        libc.mount(device, point, kind.fstype, FLAGS, kind.without_replay)
        return Shown(_with_ro(kind.without_replay), is_behind)
    except OSError as error:
        raise _refusal(error, kind, point) from error


def _with_ro(options: str) -> str:
    return f"ro,{options}" if options else "ro"


def cannot_mount(point: Path, error: OSError) -> SnapfsError:
    """For what is not the filesystem's fault."""
    return SnapfsError(
        f"Nothing can be mounted on {point}: {os.strerror(error.errno or 0)}; be root outside of any container.",
        path=point,
    )


def _refusal(error: OSError, kind: _Kind, point: Path) -> Exception:
    if error.errno in (errno.EPERM, errno.EACCES):
        return cannot_mount(point, error)
    if error.errno == errno.ENODEV:
        return NotShownError(f"this kernel mounts no {kind.fstype}")
    if error.errno == errno.EEXIST:
        return NotShownError(
            f"this kernel mounts no second {kind.fstype} of one UUID (Linux 6.7 does), and one is attached already"
        )
    reason = os.strerror(error.errno or 0)
    return NotShownError(f"the kernel does not mount this {kind.fstype} ({reason}), and its log, dmesg, may say why")


def _check_is_on(point: Path, device: Path) -> None:
    mount = find_mount(point)
    if mount is None or mount.source != str(device):
        unmount(point)
        raise NotShownError("the kernel takes it for another btrfs of the same UUID, which is attached already")
