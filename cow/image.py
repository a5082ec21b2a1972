"""The image: whole reads and writes, reads that never wait, and what tells whether it was changed meanwhile."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from cow.files import Data, Files


@dataclass(frozen=True, slots=True)
class Identity:
    """What the store remembers of the image file."""

    dev: int
    ino: int
    size_bytes: int
    mtime_ns: int
    is_device: bool


class Image:
    """An open image of ``size_bytes``; the descriptor belongs to the caller."""

    def __init__(self, fd: int, size_bytes: int, files: Files) -> None:
        self.fd, self.size_bytes, self._files = fd, size_bytes, files
        self.can_ask = files.can_ask(fd)

    def identity(self) -> Identity:
        info = os.fstat(self.fd)
        if stat.S_ISBLK(info.st_mode):
            return Identity(info.st_rdev, 0, self.size_bytes, 0, True)
        return Identity(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, False)

    def read_into(self, views: list[memoryview], offset: int) -> None:
        """Fill ``views`` from ``offset``; what lies past the end of the image becomes zeros."""
        self._files.read_into(self.fd, self._clip(views, offset), offset)

    def try_read_into(self, views: list[memoryview], offset: int) -> bool:
        """The same from the page cache only; False (and no promise what ``views`` hold) if it would wait."""
        return self._files.try_read_into(self.fd, self._clip(views, offset), offset)

    def _clip(self, views: list[memoryview], offset: int) -> list[memoryview]:
        over = offset - self.size_bytes
        for view in views:
            over += len(view)
        if over <= 0:
            return views
        clipped = list(views)
        last = clipped[-1]
        clipped[-1] = last[: len(last) - over]
        last[len(last) - over :] = bytes(over)
        return clipped

    def write(self, data: Data, offset: int) -> None:
        self._files.pwrite(self.fd, data, offset)

    def sync(self) -> None:
        self._files.sync(self.fd)
