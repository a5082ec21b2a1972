"""Who is writing to the live view at this moment: the gate that a cut closes.

It belongs to the engine's one lock; what says "lock held" is called with it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

# Waiting writes look again this often even if nobody wakes them.
_LOOK_AGAIN_S = 0.05
# Writes inside the event loop are over in less, and wake nobody.
_GATE_LOOK_S = 0.0002


class Gate:
    """Writes pass it on their way; while a cut is made it is closed, and nobody is between it and the image."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self._closed, self._closers = False, 0
        # Counts what writes that wait for others may have waited for, and the threads that wait for anything.
        self.news = self._waiting = 0
        # The offsets of writes that have not returned yet. Appending and popping are whole steps for all
        # threads, which adding to a number is not.
        self.under_way: list[int] = []

    def try_enter(self, offset: int) -> bool:
        """Pass without waiting; `leave` follows if it says True."""
        # Append, then look: who closes the gate does it first and then looks who is under way.
        self.under_way.append(offset)
        if self._closed:
            self.under_way.pop()
            return False
        return True

    def enter(self, offset: int) -> None:
        """Pass, once the gate is open."""
        while not self.try_enter(offset):
            with self._changed:
                while self._closed:
                    self.wait()

    def leave(self) -> None:
        """The write is over, however it ended."""
        self.under_way.pop()

    def tell(self) -> None:
        """Something has changed that somebody may wait for (lock held): they look again."""
        self.news += 1
        if self._waiting:
            self._changed.notify_all()

    def wait(self, timeout_s: float | None = None) -> None:
        """Until somebody tells (lock held)."""
        self._waiting += 1
        try:
            self._changed.wait(timeout_s)
        finally:
            self._waiting -= 1

    def wait_outside(self, is_news: Callable[[], bool]) -> None:
        """Wait until there `is_news`, a little at most (lock held), without keeping a cut waiting; there may be a new
        cut afterwards."""
        offset, until = self.under_way.pop(), time.monotonic() + _LOOK_AGAIN_S
        try:
            while not is_news() and (left_s := until - time.monotonic()) > 0:
                self.wait(left_s)
            while self._closed:
                self.wait()
        finally:
            self.under_way.append(offset)

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        """Let nobody new in, and wait for those under way; within this nobody is between the gate and the image.

        Without the lock. Also within another one, and then it may outlast that.
        """
        with self._changed:
            self._closers += 1
            self._closed = True
            while self.under_way:
                self.wait(_GATE_LOOK_S)
        try:
            yield
        finally:
            with self._changed:
                self._closers -= 1
                if not self._closers:
                    self._closed = False
                    self.tell()
