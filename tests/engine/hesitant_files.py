"""Files of which some calls take their time."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

from engine_rig import QuickFiles


class HesitantFiles(QuickFiles):
    """Some calls take their time, so that others come in between; `dice` is each process's own."""

    def __init__(self) -> None:
        self.dice = random.Random(0)

    def begin_dice(self, seed: int) -> random.Random:
        self.dice = random.Random(seed)
        return self.dice

    def _hesitate(self) -> None:
        if self.dice.random() < 0.02:
            time.sleep(self.dice.random() * 0.002)

    def read_into(self, fd: int, views: Sequence[memoryview], offset: int) -> None:
        self._hesitate()
        super().read_into(fd, views, offset)
        self._hesitate()

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        self._hesitate()
        super().pwrite(fd, data, offset)

    def punch(self, fd: int, offset: int, length: int) -> None:
        self._hesitate()
        super().punch(fd, offset, length)

    def end_of(self, fd: int) -> int:
        """Between a look for holes and what is made of it."""
        self._hesitate()
        return super().end_of(fd)
