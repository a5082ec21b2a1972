"""The disk of a machine that loses its power: what was not synced is gone.

It is a filesystem of its own on a loop device. XFS_IOC_GOINGDOWN, which ext4 has too, ends it without writing out
what is in memory only, neither pages nor the log; what is mounted after that is what the disk had. Whoever may have
anything open on it has to be gone by then.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import time
import uuid
from pathlib import Path

from mounted import run, unmount, wait_until

from tests.machine import MNT_DETACH, attach_loop, detach_loop

_GOING_DOWN = 0x8004587D
_WITHOUT_THE_LOG = struct.pack("I", 2)
_BYTES = 8 << 30
_MKFS = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}
_AFTER_BOOT = Path(__file__).with_name("after_boot.py")


class MachineDisk:
    """Mounted at `point` from the file `backing`, which is made; `close` it."""

    def __init__(self, backing: Path, point: Path, kind: str) -> None:
        self.point, self._backing = point, backing
        with backing.open("wb") as file:
            file.truncate(_BYTES)
        run(*_MKFS[kind], backing)
        point.mkdir()
        self._attach()

    def _attach(self) -> None:
        self._device = attach_loop(self._backing)
        run("mount", self._device, self.point)

    def lose_power(self) -> None:
        """From here on nothing reaches the disk any more."""
        fd = os.open(self.point, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _GOING_DOWN, _WITHOUT_THE_LOG)
        finally:
            os.close(fd)

    def boot(self) -> tuple[str | Path, ...]:
        """The disk is there again as it was left; the `snapfs` of the machine as it is now."""
        wait_until(lambda: unmount(self.point) == 0, what="the end of the last that uses the disk")
        detach_loop(self._device)
        self._attach()
        return sys.executable, _AFTER_BOOT, str(uuid.uuid4()), str(time.time_ns())

    def close(self) -> None:
        unmount(self.point, MNT_DETACH)
        detach_loop(self._device)
