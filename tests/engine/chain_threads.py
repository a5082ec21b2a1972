"""The threads of a busy chain: what each does until it is stopped, and one's writes."""

from __future__ import annotations

import random
import threading
import traceback
from collections.abc import Callable

from engine_rig import Rig
from lots import Author


class Writer:
    """Writes what its author says, and is asked while no write is under way how many there were."""

    def __init__(self, rig: Rig, author: Author, dice: random.Random) -> None:
        self._rig, self._author, self._dice = rig, author, dice
        self._last: tuple[int, int, bytes] | None = None

    def write(self) -> None:
        offset, data = self._author.next()
        self._last = self._author.told, offset, data
        engine = self._rig.engine
        if not any(data):
            engine.zero(offset, len(data), give_back=self._dice.random() < 0.8)
        elif self._dice.random() < 0.5 or not engine.try_write(offset, data):
            engine.write(offset, data)

    def count(self) -> int:
        """The last one may not have been let in yet."""
        if self._last is None:
            return 0
        number, offset, data = self._last
        return number if self._rig.engine.read(offset, len(data)) == data else number - 1


class Thread(threading.Thread):
    """Does `work` until it is stopped."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self._work, self.stopped = work, threading.Event()
        self.failure = ""

    def run(self) -> None:
        try:
            while not self.stopped.is_set():
                self._work()
        except BaseException:
            self.failure = traceback.format_exc()
