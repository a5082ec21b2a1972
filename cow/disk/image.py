"""The image: whole reads and writes, reads that never wait, and what tells whether it was changed meanwhile."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from cow.disk.files import Data, Files
from cow.disk.filesystems import tells_holes
from cow.holes import Range

# No sector of any device is larger.
_SECTOR_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Identity:
    """What the store remembers of the image file."""

    dev: int
    ino: int
    size_bytes: int
    mtime_ns: int
    is_device: bool


class Image:
    """An open image of `size_bytes`; the descriptor belongs to the caller.

    Somebody may cut the file short meanwhile. What lay past the end is gone from then on, also when the file is made
    longer again: it can be neither read, for it would be zeros that nobody wrote, nor written, for a write would make
    the file as long as before and hide the loss. `shortest_bytes` is the least size that was seen; `on_short` is
    called, in any thread, when that becomes less.
    """

    def __init__(self, fd: int, size_bytes: int, files: Files) -> None:
        self.fd, self.size_bytes, self._files = fd, size_bytes, files
        self.can_ask = files.can_ask(fd)
        self._tells_holes = tells_holes(fd)
        self._is_device = stat.S_ISBLK(os.fstat(fd).st_mode)
        self.shortest_bytes = size_bytes
        self.on_short: Callable[[], None] = lambda: None

    def identity(self) -> Identity:
        info = os.fstat(self.fd)
        if stat.S_ISBLK(info.st_mode):
            return Identity(info.st_rdev, 0, self.size_bytes, 0, True)
        return Identity(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, False)

    def read_into(self, views: list[memoryview], offset: int) -> None:
        """Fill `views` from `offset`; what lies past the end of the image becomes zeros."""
        clipped = self._clip(views, offset)
        try:
            self._files.read_into(self.fd, clipped, offset)
        except OSError:
            self.look()
            raise

    def try_read_into(self, views: list[memoryview], offset: int) -> bool:
        """The same from the page cache only; False (and no promise what `views` hold) if it would wait."""
        return self._files.try_read_into(self.fd, self._clip(views, offset), offset)

    def _clip(self, views: list[memoryview], offset: int) -> list[memoryview]:
        over = offset - self.size_bytes
        for view in views:
            over += len(view)
        if self.shortest_bytes < self.size_bytes:
            self._check(self.size_bytes + min(over, 0))
        if over <= 0:
            return views
        clipped = list(views)
        last = clipped[-1]
        clipped[-1] = last[: len(last) - over]
        last[len(last) - over :] = bytes(over)
        return clipped

    def is_hole(self, offset: int, length: int) -> bool:
        """Whether nothing of that is on the disk, as far as the filesystem can tell, so that it reads as zeros."""
        return self.hole_end(offset, offset + length) == offset + length

    def hole_end(self, offset: int, stop: int) -> int:
        """The end of the hole that is there, `stop` at most; `offset` when there is none. What lies past the end of a
        file that was cut short is none; there are none where nobody can tell."""
        if not self._tells_holes:
            return offset
        data = self._seek(offset, os.SEEK_DATA)
        # After it: the file may have become shorter.
        return max(offset, min(data, stop, self.shortest_bytes, self._files.end_of(self.fd)))

    def holes(self, offset: int, stop: int) -> Iterator[Range]:
        """All of them from there on, found when they are asked for: to find the next one may take long where there is
        much data."""
        while offset < stop and self._tells_holes:
            end = self.hole_end(offset, stop)
            if offset < end:
                yield offset, end
            if end >= min(stop, self.shortest_bytes):
                return
            offset = self._seek(end, os.SEEK_HOLE)

    def _seek(self, offset: int, whence: int) -> int:
        """Where the next data or hole is; the end of the image when there is none, or nobody can tell."""
        try:
            return os.lseek(self.fd, offset, whence)
        except OSError as error:
            # Who cannot tell has data everywhere.
            return self.size_bytes if whence == os.SEEK_HOLE or error.errno == errno.ENXIO else offset

    @property
    def used_bytes(self) -> int:
        """What the file takes on its disk."""
        return os.fstat(self.fd).st_blocks * 512

    def look(self) -> None:
        """See whether the file is shorter than it was."""
        present_bytes = self._files.end_of(self.fd)
        if present_bytes < self.shortest_bytes:
            self.shortest_bytes = present_bytes
            self.on_short()

    def check_whole(self) -> None:
        """OSError: the file is shorter than it was, so that no cut of it can be made."""
        self.look()
        if self._files.end_of(self.fd) < self.size_bytes:
            self._check(self.size_bytes)

    def forget(self) -> None:
        """What is there now is what counts, as of a new cut."""
        self.shortest_bytes = self.size_bytes

    def _check(self, end: int) -> None:
        if end > self.shortest_bytes:
            raise OSError(errno.EIO, "the image was cut short")

    def write(self, data: Data, offset: int) -> None:
        self.look()
        self._check(offset + len(data))
        self._files.pwrite(self.fd, data, offset)

    def zero(self, offset: int, length: int, *, give_back: bool) -> None:
        """Make the range zeros, and with `give_back` free on its disk. OSError(EOPNOTSUPP): it cannot be done without
        writing all of it, and then nothing is written."""
        self.look()
        self._check(offset + length)
        change = self._files.punch if give_back else self._files.zero
        if not self._is_device:
            change(self.fd, offset, length)
            return
        # A device takes whole sectors.
        low, high = -(-offset // _SECTOR_BYTES) * _SECTOR_BYTES, (offset + length) // _SECTOR_BYTES * _SECTOR_BYTES
        if low < high:
            change(self.fd, low, high - low)
        else:
            low = high = offset + length
        for start, end in ((offset, low), (high, offset + length)):
            if start < end:
                self._files.pwrite(self.fd, bytes(end - start), start)

    def sync(self) -> None:
        self._files.sync(self.fd)
