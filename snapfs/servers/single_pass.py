"""`--single-pass`: whoever reads the snapshot from its beginning on needs each block once.

What has been read in one go is released behind the reader. The kernel reads ahead of a program, and a page
may be dropped and asked for again before the program got it, so the release stays a good way behind; the rest
follows when the file is closed at its end. Who asks where the holes are may ask for all of them before he reads
anything, and then once more: a hole counts as read when what comes behind it is.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

# More than the kernel reads ahead (4 MiB), with room for a reader that is slow while memory is short.
LAG_BYTES = 64 << 20
STEP_BYTES = 64 << 20
# Of reads and of holes that lie ahead so many are remembered, the first ones; for what is forgotten less is released.
_MOST_AHEAD: Final = 1 << 16


class SinglePass:
    """Follows reads, tells `release(offset, length)` what is not needed any more."""

    def __init__(self, image_bytes: int, release: Callable[[int, int], None]) -> None:
        self._image_bytes, self._release = image_bytes, release
        self._read_to = self._released_to = 0
        # Reads of one stretch may come in any order: what lies ahead of a gap waits here, `start, end`; a heap.
        self._ahead: list[tuple[int, int]] = []
        # The same of holes; and up to where there is one, if anything is to be read behind it.
        self._holes: list[tuple[int, int]] = []
        self._hole_to = 0

    def note_read(self, offset: int, length: int) -> None:
        """These bytes were handed out."""
        if offset <= self._read_to:
            self._read_to = max(self._read_to, offset + length)
        else:
            _remember(self._ahead, offset, offset + length)
        while self._goes_on():
            self._read_to = max(self._read_to, heappop(self._ahead)[1])
        self._release_to(self._read_to - LAG_BYTES, STEP_BYTES)

    def note_hole(self, offset: int, length: int) -> None:
        """There is nothing to be read, as somebody was told who asked where the next data is."""
        if offset + length > self._read_to:
            _remember(self._holes, offset, offset + length)

    def note_close(self) -> None:
        """A file was closed: if it was read to the end, nothing of it is needed any more."""
        self._goes_on()
        if self._read_to >= self._image_bytes or 0 < self._read_to < self._hole_to == self._image_bytes:
            self._release_to(self._image_bytes, 1)
        self._ahead.clear()
        self._holes.clear()

    def _goes_on(self) -> bool:
        """Whether the first of what lies ahead follows what was read, perhaps behind a hole."""
        while self._holes and self._holes[0][0] <= self._read_to:
            self._hole_to = max(self._hole_to, heappop(self._holes)[1])
        return bool(self._ahead) and self._ahead[0][0] <= max(self._read_to, self._hole_to)

    def _release_to(self, offset: int, at_least_bytes: int) -> None:
        if offset - self._released_to >= at_least_bytes:
            start, self._released_to = self._released_to, offset
            self._release(start, offset - start)


def _remember(heap: list[tuple[int, int]], start: int, end: int) -> None:
    if len(heap) < _MOST_AHEAD:
        heappush(heap, (start, end))
