"""One mounted image: what the supervisor and all servers were started with, and how they wake each other."""

from __future__ import annotations

import mmap
import os
import select
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cow import Image, Store, read_revert_note
from snapfs.options import MountOptions
from snapfs.serving.permissions import Permissions
from snapfs.system.block_ioctl import sector_bytes_of
from snapfs.system.descriptors import present_name
from snapfs.system.stores import name_of
from snapfs.system.view_mounts import ViewId, mounts_of

LIVE, SNAPSHOT, COMPACTOR = "live", "snapshot", "compactor"
_VIEWS: Final = (LIVE, SNAPSHOT)
_NOTED: Final = 1 << 63


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


class ViewPlaces:
    """Which filesystem each view is, in memory that all processes of the instance share. The server of a view notes
    it when it has mounted, and that there is none any more when the view was unmounted."""

    def __init__(self) -> None:
        self._numbers = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def note(self, name: str, view: ViewId | None) -> None:
        at = 2 * _VIEWS.index(name)
        self._numbers[at] = 0
        if view is not None:
            self._numbers[at + 1] = view.source
            self._numbers[at] = _NOTED | view.major << 32 | view.minor

    def view(self, name: str) -> ViewId | None:
        number, source = self._numbers[(at := 2 * _VIEWS.index(name)) : at + 2]
        return ViewId(number >> 32 & 0x7FFFFFFF, number & 0xFFFFFFFF, source) if number else None


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
    live_pidfd: int = -1
    work: Bell = field(default_factory=Bell)
    room: Bell = field(default_factory=Bell)
    new_cut: Bell = field(default_factory=Bell)
    released: Bell = field(default_factory=Bell)
    places: ViewPlaces = field(default_factory=ViewPlaces)
    permissions: Permissions = field(init=False)

    def __post_init__(self) -> None:
        self.permissions = Permissions(self.image.fd)

    def point(self, view: str) -> Path:
        """Where the view is mounted now, also when a directory above it was renamed; where it was to be mounted
        when it is not."""
        mounts = mounts_of(self.places.view(view))
        if mounts:
            return mounts[0].mount_point
        return self.live if view == LIVE else self.snap

    def view_file(self, view: str) -> Path:
        """The file in the view, where it is now."""
        return self.point(view) / self.view_name

    @property
    def store_path(self) -> Path:
        """Where the store is now: a directory above it may have been renamed."""
        return name_of(self.store.path)

    @property
    def present_image_path(self) -> Path:
        """Where the image is now; where it was when it was deleted."""
        return present_name(self.image.fd) or self.image_path

    @property
    def summary(self) -> str:
        """What is shown where, in one line for people."""
        return f"{self.image_path} at {self.live}, its snapshot at {self.snap}"

    @property
    def view_name(self) -> str:
        """The name of the file in both views."""
        return self.image_path.name

    @property
    def sector_bytes(self) -> int | None:
        """The logical sector of a block device; an image file has none."""
        if not self.store.header.is_device:
            return None
        return sector_bytes_of(self.image.fd)

    @property
    def keeps_store(self) -> bool:
        """Whether the store outlives a clean end: an image that is half-way back to a snapshot needs it."""
        return self.options.store is not None or read_revert_note(self.store.path) is not None
