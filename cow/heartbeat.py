"""Noting in the control page when the image was last written by us.

A mount after a crash compares the image's modification time with it, and so finds out whether somebody else
changed the image. While nobody writes, the exact time is noted; while somebody does, only that it is recent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cow.control import Control
from cow.image import Image
from cow.layout import Counter

_BEAT_NS = 20_000_000


class Heartbeat:
    """``on_writing`` is called, in any thread, when the first write comes after a pause; ``on_beat`` as long as
    writes go on, at most once in 20 ms."""

    def __init__(
        self, control: Control, image: Image, on_writing: Callable[[], None], on_beat: Callable[[], None]
    ) -> None:
        self._control, self._image, self._on_writing, self._on_beat = control, image, on_writing, on_beat
        self._beat_ns = 0

    def beat(self, now_ns: int) -> None:
        """Before each write, at ``now_ns`` of the monotonic clock."""
        if now_ns - self._beat_ns <= _BEAT_NS:
            return
        self._beat_ns = now_ns
        self._control[Counter.HEARTBEAT_NS] = time.time_ns()
        if not self._control[Counter.WRITING]:
            self._control[Counter.WRITING] = 1
            self._on_writing()
        self._on_beat()

    def note_quiet(self, under_way: Sequence[int]) -> bool:
        """Note the image's modification time if no write came lately and none is ``under_way``."""
        control, beat_ns = self._control, self._beat_ns
        if not control[Counter.WRITING]:
            return True
        if under_way:
            # A write that hangs may set the image's time whenever it goes on.
            control[Counter.HEARTBEAT_NS] = time.time_ns()
            return False
        if time.monotonic_ns() - beat_ns <= 2 * _BEAT_NS:
            return False
        control[Counter.IMAGE_MTIME_NS] = self._image.identity().mtime_ns
        control[Counter.WRITING] = 0
        if under_way or self._beat_ns != beat_ns:
            # A write began meanwhile; it may have found the flag still set.
            control[Counter.WRITING] = 1
            return False
        return True

    def note_times(self, mtime_ns: int) -> None:
        """The image's modification time is about to be set to ``mtime_ns`` on a user's behalf."""
        self._control[Counter.IMAGE_MTIME_NS] = mtime_ns
