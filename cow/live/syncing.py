"""Making live writes durable, without a thread of its own where that takes no longer than handing it to one.

A sync waits for the disk by its nature. But a small one, on a disk that has been answering at once, is over in less
time than another thread needs to wake up. The first sync after a slow one always gets a thread, which finds out
whether the disk is quick again.
"""

from __future__ import annotations

import errno
import os
import time

from cow.disk.image import Image

_QUICK_NS = 1_000_000
# More than that takes the disk time, however quick it is.
_SMALL_BYTES = 256 << 10


class Syncer:
    """Syncs `image`. `unsynced_bytes` is what was written since the last sync began; writers add to it."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._was_quick = False
        # Of a sync that nobody asked for, and whose error the kernel tells once.
        self._untold_errno = 0
        self.unsynced_bytes = 0

    def try_sync(self) -> bool:
        """Do it if it will not take long; OSError: it failed."""
        if not self._was_quick or self.unsynced_bytes > _SMALL_BYTES:
            return False
        self.sync()
        return True

    def sync_unasked(self) -> None:
        """For a purpose of our own: what fails then fails the next one who asks, too."""
        try:
            self.sync()
        except OSError as error:
            self._untold_errno = error.errno or errno.EIO
            raise

    def sync(self) -> None:
        """Return when all writes that had returned before are durable; OSError: it failed, or one before it did."""
        self._was_quick, self.unsynced_bytes = False, 0
        if self._untold_errno:
            code, self._untold_errno = self._untold_errno, 0
            raise OSError(code, os.strerror(code))
        start_ns = time.monotonic_ns()
        self._image.sync()
        self._was_quick = time.monotonic_ns() - start_ns < _QUICK_NS
