"""Freezing a mounted filesystem: it writes out what it holds, then whoever writes to it waits for the thaw.

Source: ioctl_fsfreeze in the kernel's fs/ioctl.c, and its Documentation/filesystems (freezing); numbers from
linux/fs.h.

Rules:
- While a filesystem is frozen nobody may wait for it who is needed for its thaw. So never frozen are those that
  hold the store, the hook scripts or the program, nor those on whose files such a one lies.
- A filesystem that somebody else has frozen is not ours to thaw.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from snapfs.freezing.live_filesystems import LiveFilesystem, Number
from snapfs.system.kernel_text import kernel_lines
from snapfs.system.mounts import find_mount

_FIFREEZE: Final = 0xC0045877
_FITHAW: Final = 0xC0045878
_MAX_LAYERS: Final = 8  # overlays on overlays ...

_REASONS: Final = {
    errno.EOPNOTSUPP: "{fstype} cannot be frozen",
    errno.ENOTTY: "{fstype} cannot be frozen",
    errno.EBUSY: "it is already frozen by somebody else",
    errno.EPERM: "only root may freeze it",
    errno.EACCES: "only root may freeze it",
}


def freeze(fd: int) -> None:
    """Freeze the filesystem of `fd`; returns when all it held is written. OSError: it is not frozen by us."""
    _ioctl(fd, _FIFREEZE)


def thaw(fd: int) -> bool:
    """Thaw the filesystem of `fd`; False when it was not frozen (any more)."""
    try:
        _ioctl(fd, _FITHAW)
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def _ioctl(fd: int, number: int) -> None:
    while True:
        try:
            fcntl.ioctl(fd, number, 0)
            return
        except InterruptedError:
            continue


def why_not_frozen(error: OSError, fstype: str) -> str:
    """The reason for people, to follow a mount point."""
    reason = _REASONS.get(error.errno or 0, "freezing failed ({error})")
    return reason.format(fstype=fstype, error=error.strerror)


# --- what must never be frozen -------------------------------------------------------------------------------


def never_frozen(filesystems: Sequence[LiveFilesystem], kept: Mapping[str, Iterable[Path]]) -> dict[Number, str]:
    """Device of each filesystem that must not be frozen -> the reason. `kept` names what is on `paths`, as in
    {"the store": [path]}."""
    reasons: dict[Number, str] = {}
    by_device = {filesystem.device: filesystem for filesystem in filesystems}
    for what, paths in kept.items():
        for path in paths:
            for device in _devices_below(path):
                _protect(device, f"it holds {what}", by_device, reasons)
    for device in _mapped_devices(os.getpid()):
        _protect(device, "it holds snapfs itself", by_device, reasons)
    return reasons


def _protect(
    device: Number, reason: str, by_device: Mapping[Number, LiveFilesystem], reasons: dict[Number, str]
) -> None:
    """Also the filesystem in which this one is a file: frozen, it would stop this one as well."""
    filesystem = by_device.get(device)
    while filesystem is not None:
        reasons.setdefault(filesystem.device, reason)
        filesystem = by_device.get(filesystem.host) if filesystem.host else None


def _devices_below(path: Path, layers: int = _MAX_LAYERS) -> set[Number]:
    """The filesystem of `path`; for an overlay also those of its layers."""
    mount = find_mount(path)
    if mount is None:
        return set()
    devices = {mount.device}
    if mount.fstype == "overlay" and layers:
        for name in ("upperdir", "workdir", "lowerdir"):
            for layer in (mount.option(name) or "").split(":"):
                if layer:
                    devices |= _devices_below(Path(layer), layers - 1)
    return devices


def _mapped_devices(pid: int) -> set[Number]:
    """The filesystems of all files that process `pid` has mapped: program, libraries."""
    found: set[Number] = set()
    try:
        lines = kernel_lines(f"/proc/{pid}/maps")
    except OSError:
        return found
    for line in lines:
        words = line.split(maxsplit=5)
        if len(words) > 4 and words[4] != b"0":
            major, _, minor = words[3].partition(b":")
            found.add((int(major, 16), int(minor, 16)))
    return found
