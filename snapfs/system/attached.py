"""A part of a file as a block device that goes by itself: a read-only loop device.

Source: loop(4) and include/uapi/linux/loop.h of the kernel (LOOP_CTL_GET_FREE, LOOP_CONFIGURE since Linux 5.8).

Rules:
- The kernel takes the device back when nobody has it open any more (LO_FLAGS_AUTOCLEAR): at the latest when what is
  mounted from it is unmounted, lazily or not, and also when whoever attached it is killed before anything is.
- It is made by one system call, so there never is one that would stay.
- Its sectors are of 512 bytes, whatever the image has: a filesystem takes a device of smaller sectors than its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from snapfs.errors import SnapfsError

_CONTROL: Final = "/dev/loop-control"
_LOOP_CTL_GET_FREE: Final = 0x4C82
_LOOP_CONFIGURE: Final = 0x4C0A
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
# struct loop_config: the file, the size of a sector (0: 512 bytes), struct loop_info64, reserved.
_CONFIG: Final = struct.Struct("=2I 5Q4I64s64s32s2Q 64x")
_MAX_TRIES: Final = 100


@contextmanager
def attached(fd: int, offset: int, length: int) -> Iterator[Path]:
    """A device that shows `length` bytes at `offset` of the file `fd`, for as long as this lasts or it is mounted.

    SnapfsError: there is no device for it.
    """
    try:
        device_fd, device = _attach(fd, offset, length)
    except OSError as error:
        raise SnapfsError(
            f"No loop device can be made: {error.strerror}; look whether this machine lets you have one "
            "(losetup --find)."
        ) from error
    try:
        yield device
    finally:
        os.close(device_fd)


def _attach(fd: int, offset: int, length: int) -> tuple[int, Path]:
    flags = _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR
    config = _CONFIG.pack(fd, 0, 0, 0, 0, offset, length, 0, 0, 0, flags, b"", b"", b"", 0, 0)
    control_fd = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_MAX_TRIES):
            device = Path(f"/dev/loop{fcntl.ioctl(control_fd, _LOOP_CTL_GET_FREE)}")
            device_fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device_fd, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device_fd)
                if error.errno != errno.EBUSY:  # somebody else was faster
                    raise
            else:
                return device_fd, device
    finally:
        os.close(control_fd)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
