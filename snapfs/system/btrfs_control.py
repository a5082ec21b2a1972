"""What the kernel remembers of the devices of btrfs.

Source: include/uapi/linux/btrfs.h of the kernel (struct btrfs_ioctl_vol_args, BTRFS_IOC_FORGET_DEV).
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

_CONTROL: Final = "/dev/btrfs-control"
_BTRFS_IOC_FORGET_DEV: Final = 0x50009405
_VOL_ARGS: Final = struct.Struct("=q4088s")


def forget_device(device: Path) -> None:
    """Of a filesystem that is not mounted, whatever was known of a device with this number.

    The kernel keeps that until the next scan, also when the device is another one meanwhile: the number of a loop
    device is given anew at once. Without it (there is no btrfs, or nothing was known) there is nothing to forget.
    """
    with suppress(OSError):
        fd = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            # One that could be changed: others may have no more than 1024 bytes.
            fcntl.ioctl(fd, _BTRFS_IOC_FORGET_DEV, bytearray(_VOL_ARGS.pack(0, os.fsencode(device))))
        finally:
            os.close(fd)
