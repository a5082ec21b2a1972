"""`--single-pass`: whoever reads the snapshot from its beginning on needs each block once.

What has been read in one go is released behind the reader. The kernel reads ahead of a program, and a page
may be dropped and asked for again before the program got it, so the release stays a good way behind; the rest
follows when the file is closed at its end.
"""

from __future__ import annotations

from collections.abc import Callable

# More than the kernel reads ahead (4 MiB), with room for a reader that is slow while memory is short.
LAG_BYTES = 64 << 20
STEP_BYTES = 64 << 20


class SinglePass:
    """Follows reads, tells `release(offset, length)` what is not needed any more."""

    def __init__(self, image_bytes: int, release: Callable[[int, int], None]) -> None:
        self._image_bytes, self._release = image_bytes, release
        self._read_to = self._released_to = 0
        # Reads of one stretch may come in any order: what lies ahead of a gap waits here, end by start.
        self._ahead: dict[int, int] = {}

    def note_read(self, offset: int, length: int) -> None:
        """These bytes were handed out."""
        if offset <= self._read_to:
            self._read_to = max(self._read_to, offset + length)
        else:
            self._ahead[offset] = max(self._ahead.get(offset, 0), offset + length)
        while (start := min(self._ahead, default=self._read_to + 1)) <= self._read_to:
            self._read_to = max(self._read_to, self._ahead.pop(start))
        self._release_to(self._read_to - LAG_BYTES, STEP_BYTES)

    def note_close(self) -> None:
        """A file was closed: if it was read to the end, nothing of it is needed any more."""
        if self._read_to >= self._image_bytes:
            self._release_to(self._image_bytes, 1)
        self._ahead.clear()

    def _release_to(self, offset: int, at_least_bytes: int) -> None:
        if offset - self._released_to >= at_least_bytes:
            start, self._released_to = self._released_to, offset
            self._release(start, offset - start)
