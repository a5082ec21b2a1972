"""One mounted image: what the supervisor and all servers were started with, and how they wake each other."""

from __future__ import annotations

import fcntl
import os
import select
import sys
from dataclasses import dataclass, field
from pathlib import Path

from cow.image import Image
from cow.store import Store
from snapfs.options import MountOptions

_BLKSSZGET = 0x1268


class Bell:
    """Wakes another process; rings that nobody waited for are one ring."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)

    def ring(self) -> None:
        os.eventfd_write(self.fd, 1)

    def wait(self, timeout_s: float | None) -> bool:
        """Whether it rang in time; None waits for ever."""
        if not self._poll.poll(None if timeout_s is None else timeout_s * 1000):
            return False
        self.hush()
        return True

    def hush(self) -> None:
        """Forget rings up to now."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return


@dataclass(slots=True)
class Instance:
    """Inherited by every server: open files, mappings and bells are the same in all of them."""

    options: MountOptions
    image_path: Path
    live: Path
    snap: Path
    store: Store
    image: Image
    supervisor_pid: int = 0
    work: Bell = field(default_factory=Bell)
    room: Bell = field(default_factory=Bell)
    new_cut: Bell = field(default_factory=Bell)
    released: Bell = field(default_factory=Bell)

    @property
    def view_name(self) -> str:
        """The name of the file in both views."""
        return self.image_path.name

    @property
    def sector_bytes(self) -> int | None:
        """The logical sector of a block device; an image file has none."""
        if not self.store.header.is_device:
            return None
        return int.from_bytes(fcntl.ioctl(self.image.fd, _BLKSSZGET, bytes(4)), sys.byteorder)

    @property
    def keeps_store(self) -> bool:
        """Whether the store outlives a clean end."""
        return self.options.store is not None
