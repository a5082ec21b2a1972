"""What the imager reads from: which errors mean that only these bytes are bad, and reading around those.

Source: the block layer's table from its own status to an errno (block/blk-core.c of the kernel; a medium error
is ENODATA there, which the page cache turns into EIO).
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
from typing import Final

from snapfs.system.block_ioctl import sector_bytes_of
from snapfs.system.descriptors import path_of
from snapfs.whole import read_whole

# The page cache reads, and fails, by pages.
PAGE_BYTES: Final = 4096
_SMALLEST_SECTOR_BYTES: Final = 512
# Others (ENODEV, ENXIO, ENOTCONN, ...) say that the whole disk is gone: nothing beside these bytes can be read.
BAD_MEDIUM: Final = frozenset({errno.EIO, errno.ENODATA, errno.EREMOTEIO, errno.EILSEQ, errno.EBADMSG})


class Rereader:
    """Reads an image again in small pieces past the page cache, which would fail a page for one bad sector.

    `unit_bytes` is the smallest piece that can fail alone: a sector, or a page where the cache cannot be passed.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._direct_fd: int | None = None
        self._buffer = memoryview(mmap.mmap(-1, 2 << 20))
        self.unit_bytes = PAGE_BYTES
        try:
            # The very same file: its name may lead to another one meanwhile.
            self._direct_fd = os.open(path_of(fd), os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:
            return
        self.unit_bytes = self._sector_bytes(self._direct_fd)

    def read_into(self, view: memoryview, offset: int) -> None:
        """OSError: not all of it can be read."""
        length = len(view)
        if self._direct_fd is None or (offset | length) % self.unit_bytes or length > len(self._buffer):
            # The end of an image that is no multiple of a sector.
            read_whole(self._fd, view, offset)
            return
        read_whole(self._direct_fd, self._buffer[:length], offset)
        view[:] = self._buffer[:length]

    def close(self) -> None:
        if self._direct_fd is not None:
            os.close(self._direct_fd)

    def _sector_bytes(self, direct_fd: int) -> int:
        if stat.S_ISBLK(os.fstat(direct_fd).st_mode):
            return sector_bytes_of(direct_fd)
        try:
            os.preadv(direct_fd, [self._buffer[:_SMALLEST_SECTOR_BYTES]], 0)
        except OSError as error:
            # Any other error is of the bytes there, not of their number.
            if error.errno == errno.EINVAL:
                return PAGE_BYTES
        return _SMALLEST_SECTOR_BYTES
