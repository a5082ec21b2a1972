"""Telling the kernel what will be read soon, so that the disk has several requests at a time."""

from __future__ import annotations

import contextlib
import os


def read_ahead(fd: int, offset: int, length: int) -> None:
    """Begin to read that into the page cache. A hint: it may be refused, and never fails."""
    with contextlib.suppress(OSError, OverflowError):
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_WILLNEED)
