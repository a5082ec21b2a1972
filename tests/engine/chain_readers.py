"""The processes that read the snapshots of a chain (`snapshot_process`): one reads all of them, and each of the
others one at a time, if it is not idle.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Final

from engine_rig import Rig
from lots import Retelling
from snapshot_process import Done, ReadWhole, SnapshotProcess

# Whoever has not answered by then hangs.
HANGS_S: Final = 60.0


class Readers:
    """`look` raises AssertionError with what any of them found wrong. `reads`: how many those did that have ended."""

    def __init__(self) -> None:
        self.processes: list[SnapshotProcess] = []
        self.reads = 0

    def begin(
        self, rig: Rig, retelling: Retelling, snapshots: int, begin_dice: Callable[[int], random.Random]
    ) -> None:
        """For so many snapshots at a time. `begin_dice` gives each, by its number, what decides for it."""
        for number in range(snapshots + 2):
            dice = begin_dice(number)
            self.processes.append(SnapshotProcess(rig, retelling, dice.randrange(1 << 32), self.processes))
        self._reads_all, *self._idle = self.processes

    def end(self) -> None:
        for process in self.processes:
            process.end()

    def of_the_next(self, look: Callable[[], None]) -> list[SnapshotProcess]:
        """Those that are to read the next snapshot; `look` is called while nobody is idle yet."""
        deadline_s = time.monotonic() + HANGS_S
        while not self._idle:
            assert time.monotonic() < deadline_s, "a reader hangs"
            wait([process.pipe for process in self.processes], 1)
            look()
        return [self._reads_all, self._idle.pop()]

    def tell(self, process: SnapshotProcess, message: object) -> None:
        try:
            process.pipe.send(message)
        except BrokenPipeError:
            self.look()
            raise

    def look(self) -> None:
        for process in self.processes:
            while process.pipe.poll():
                self._take(process, process.pipe.recv())

    def _take(self, process: SnapshotProcess, message: object) -> None:
        assert isinstance(message, Done), message
        self.reads += message.reads
        if process is not self._reads_all:
            self._idle.append(process)

    def read_all(self) -> None:
        """Every snapshot whole, once more."""
        asked = [process for process in self.processes if process not in self._idle]
        for process in asked:
            self.tell(process, ReadWhole())
        for process in asked:
            message = None
            while not (isinstance(message, Done) and not message.generation):
                message = self._receive([process.pipe])
                assert isinstance(message, Done), message

    def _receive(self, pipes: list[Connection]) -> object:
        ready = wait(pipes, HANGS_S)
        assert ready, "a reader hangs"
        assert isinstance(ready[0], Connection)
        return ready[0].recv()
