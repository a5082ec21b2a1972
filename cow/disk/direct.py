"""Large writes past the page cache, where the disk is quick enough for that.

Pages that are new to the page cache are the dearest part of writing a segment, and hardly anybody reads it soon.
A slow disk is better written through the cache, which takes a burst and writes it out later.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import time
from collections.abc import Sequence

from cow.disk.files import Files

ALIGN_BYTES = 4096
# Smaller ones gain nothing and would waste the rest of a page.
_LEAST_BYTES = 256 << 10
_LEAST_BYTES_PER_S = 150e6
_SLOW_IN_A_ROW = 4


class DirectWriter:
    """Decides by what it measures; once it found the disk slow or unable it stays off."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._buffer = mmap.mmap(-1, ALIGN_BYTES)
        self._is_on, self._slow = True, 0

    def suits(self, length: int) -> bool:
        """Whether `length` bytes should be written so."""
        return self._is_on and length >= _LEAST_BYTES

    def write(self, fd: int, parts: Sequence[bytes], length: int, offset: int) -> bool:
        """Write `parts`, `length` bytes, at `offset`, a multiple of ALIGN_BYTES; zeros up to the next follow.

        False: this file cannot be written so, and nothing was. OSError: nothing that was written counts.
        """
        padded = -(-length // ALIGN_BYTES) * ALIGN_BYTES
        with memoryview(self._filled(parts, length, padded)) as whole, whole[:padded] as view:
            start_ns = time.monotonic_ns()
            try:
                self._set_direct(fd, on=True)
                self._files.pwrite(fd, view, offset)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._is_on = False
                return False
            finally:
                self._set_direct(fd, on=False)
        self._note(padded, time.monotonic_ns() - start_ns)
        return True

    def _filled(self, parts: Sequence[bytes], length: int, padded: int) -> mmap.mmap:
        if len(self._buffer) < padded:
            self._buffer = mmap.mmap(-1, padded)
        self._buffer.seek(0)
        for part in parts:
            self._buffer.write(part)
        self._buffer.write(bytes(padded - length))
        return self._buffer

    @staticmethod
    def _set_direct(fd: int, *, on: bool) -> None:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_DIRECT
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if on else flags)

    def _note(self, length: int, took_ns: int) -> None:
        self._slow = self._slow + 1 if length * 1e9 < took_ns * _LEAST_BYTES_PER_S else 0
        self._is_on = self._slow < _SLOW_IN_A_ROW
