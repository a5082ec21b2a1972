"""Open IMAGE for reading and writing, or say in one sentence why it cannot be.

Source: open(2) (O_EXCL of a block device: EBUSY while it is mounted or otherwise claimed).

Nothing is created, changed or truncated here.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

from cow import MAX_IMAGE_BYTES
from snapfs.errors import BusyError, PermissionDeniedError, SnapfsError
from snapfs.options import format_size
from snapfs.system.block_ioctl import is_read_only, size_bytes_of
from snapfs.system.file_kinds import holds_data, kind_name
from snapfs.system.holders import Holder, describe, holders_of_image

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
        if is_device and is_read_only(fd):
            raise _read_only(path)
        size_bytes = size_bytes_of(fd)
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
