"""Open IMAGE for reading and writing, or say in one sentence why it cannot be.

Source: block devices as in the kernel's include/uapi/linux/fs.h (BLKGETSIZE64) and open(2) (O_EXCL: EBUSY while
the device is mounted or otherwise claimed).

Nothing is created, changed or truncated here.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import Final, NamedTuple

from cow import MAX_IMAGE_BYTES
from snapfs.errors import BusyError, PermissionDeniedError, SnapfsError
from snapfs.options import format_size
from snapfs.system.file_kinds import holds_data, kind_name
from snapfs.system.holders import Holder, describe, holders_of_image

_BLKGETSIZE64: Final = 0x80081272
_BLKROGET: Final = 0x125E
_PROBED_BYTES: Final = 4096


class OpenImage(NamedTuple):
    """An image, open for reading and writing; the caller closes `fd`."""

    fd: int
    size_bytes: int
    is_device: bool


def open_image(path: Path | str) -> OpenImage:
    """Open the image; `SnapfsError` (`BusyError`, `PermissionDeniedError`) says why it cannot be."""
    is_device = _checked_kind(path)
    exclusive = os.O_EXCL if is_device else 0
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | exclusive)
    except OSError as error:
        raise _open_error(path, error) from error
    try:
        if is_device and _is_read_only_device(fd):
            raise _read_only(path)
        size_bytes = _size_bytes(fd, is_device)
        _check_content(path, fd, size_bytes)
    except BaseException:
        os.close(fd)
        raise
    return OpenImage(fd, size_bytes, is_device)


def check_is_image(path: Path | str) -> None:
    """`SnapfsError` when there is no regular file or block device at `path`; nothing is opened."""
    _checked_kind(path)


def check_image_unused(path: Path | str) -> None:
    """`BusyError` names who else uses the image: snapfs, a loop device, a mount, swap, QEMU. A file can be opened
    all the same, so ask this too; locks that this process has itself do not count."""
    holders = holders_of_image(path)
    if holders:
        raise _busy(path, holders)


def _checked_kind(path: Path | str) -> bool:
    """Whether `path` is a block device; raises for what is neither that nor a regular file, before it is opened:
    opening a FIFO would wait, opening a character device may do anything."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise _open_error(path, error) from error
    if not holds_data(mode):
        raise SnapfsError(
            f"{path} is {kind_name(mode)}, not an image; name a raw image file or a block device.", path=path
        )
    return stat.S_ISBLK(mode)


def _open_error(path: Path | str, error: OSError) -> SnapfsError:
    number = error.errno
    if number in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
        return SnapfsError(f"{path} does not exist; name a raw image file or a block device.", path=path)
    if number == errno.ENAMETOOLONG:
        return SnapfsError(f"{path} cannot exist, its name is too long; name a raw image file.", path=path)
    if number in (errno.EBUSY, errno.ETXTBSY):
        return _busy(path, holders_of_image(path))
    if number == errno.EROFS:
        return _read_only(path)
    if number in (errno.EACCES, errno.EPERM):
        return _permission_error(path)
    return SnapfsError(f"{path} cannot be opened: {error.strerror}; check the disk it is on.", path=path)


def _busy(path: Path | str, holders: list[Holder]) -> BusyError:
    who = describe(holders) or "the kernel does not say by whom"
    return BusyError(
        f"{path} is in use: {who}; end that and try again.",
        path=path,
        holders=[holder.description for holder in holders],
    )


def _read_only(path: Path | str) -> SnapfsError:
    return SnapfsError(
        f"{path} is read-only, and the live view must write to it; make it writable or use a copy.", path=path
    )


def _permission_error(path: Path | str) -> SnapfsError:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        missing = "read"
    else:
        missing = "written to"
    return PermissionDeniedError(
        f"{path} cannot be {missing} by this user; change its permissions or run snapfs as its owner or root.",
        path=path,
    )


def _is_read_only_device(fd: int) -> bool:
    """Asked, because not every kernel refuses to open such a device for writing; the writes would fail."""
    try:
        return bool(struct.unpack("=i", fcntl.ioctl(fd, _BLKROGET, bytes(4)))[0])
    except OSError:
        return False


def _size_bytes(fd: int, is_device: bool) -> int:
    if is_device:
        try:
            return int(struct.unpack("=Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0])
        except OSError:
            return os.lseek(fd, 0, os.SEEK_END)
    return os.fstat(fd).st_size


def check_image_size(path: Path | str, size_bytes: int) -> None:
    """`SnapfsError` for an image with nothing in it, or one too large for maps that are held in memory."""
    if size_bytes == 0:
        raise SnapfsError(f"{path} is empty, there is nothing to show; name an image with content.", path=path)
    if size_bytes > MAX_IMAGE_BYTES:
        raise SnapfsError(
            f"{path} has {size_bytes} bytes, and snapfs takes images up to {format_size(MAX_IMAGE_BYTES)}; "
            "name a smaller one, such as one of its partitions.",
            path=path,
        )


def _check_content(path: Path | str, fd: int, size_bytes: int) -> None:
    check_image_size(path, size_bytes)
    try:
        os.pread(fd, _PROBED_BYTES, 0)
    except OSError as error:
        raise SnapfsError(f"{path} cannot be read: {error.strerror}; check the disk it is on.", path=path) from error
