"""Noting in the control page when the image was last written by us.

A mount after a crash compares the image's modification time with it, and so finds out whether somebody else
changed the image. While nobody writes, the exact time is noted; while somebody does, only that it is recent.

The image's time is the wall clock's, which may be set, or go on by hours while the machine sleeps. So it is that
clock that says when a beat is due: a write after a step forward is noted under the new time before it is made. What
is noted never goes back while writes go on: the last one before a step backward may be all that the image shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cow.disk.image import Image
from cow.disk.layout import Counter
from cow.disk.numbers import Control

_BEAT_NS = 20_000_000


class Heartbeat:
    """`on_writing` is called, in any thread, when the first write comes after a pause; `on_beat` as long as
    writes go on, at most once in 20 ms."""

    def __init__(
        self, control: Control, image: Image, on_writing: Callable[[], None], on_beat: Callable[[], None]
    ) -> None:
        self._control, self._image, self._on_writing, self._on_beat = control, image, on_writing, on_beat
        self._beat_ns = self._wall_ns = 0

    def beat(self, now_ns: int) -> None:
        """Before each write, at `now_ns` of the monotonic clock."""
        wall_ns = time.time_ns()
        if now_ns - self._beat_ns <= _BEAT_NS and -_BEAT_NS <= wall_ns - self._wall_ns <= _BEAT_NS:
            return
        self._beat_ns, self._wall_ns = now_ns, wall_ns
        control = self._control
        if control[Counter.WRITING]:
            self._note_wall(wall_ns)
        else:
            control[Counter.HEARTBEAT_NS] = wall_ns
            control[Counter.WRITING] = 1
            self._on_writing()
        self._on_beat()

    def _note_wall(self, wall_ns: int) -> None:
        control = self._control
        control[Counter.HEARTBEAT_NS] = max(wall_ns, control[Counter.HEARTBEAT_NS])

    def note_quiet(self, under_way: Sequence[int]) -> bool:
        """Note the image's modification time if no write came lately and none is `under_way`."""
        control, beat_ns = self._control, self._beat_ns
        if not control[Counter.WRITING]:
            return True
        if under_way:
            # A write that hangs may set the image's time whenever it goes on.
            self._note_wall(time.time_ns())
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
        """The image's modification time is about to be set to `mtime_ns` on a user's behalf."""
        self._control[Counter.IMAGE_MTIME_NS] = mtime_ns
