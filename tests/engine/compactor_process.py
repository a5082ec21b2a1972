"""A process that has one compactor after the other, each in one of its own, as the compactor's server does it."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Final

from engine_rig import Rig
from hesitant_files import HesitantFiles
from snapshot_process import SnapshotProcess

from cow.compact.compactor import Compactor
from cow.disk.layout import Counter

_NEVER: Final = 1 << 60


class Compactors:
    """It goes on until SIGTERM: then its exit code says how that went."""

    def __init__(
        self, rig: Rig, seed: int, bell: int, readers: Sequence[SnapshotProcess], *, are_killed: bool
    ) -> None:
        """`readers`: those that there are, of which it must not keep the pipes open."""
        self._rig, self._seed, self._bell, self._are_killed = rig, seed, bell, are_killed
        self._pid = os.fork()
        if self._pid:
            return
        code = 1
        try:
            for process in readers:
                process.pipe.close()
            code = self._compact_always()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def end(self) -> None:
        os.kill(self._pid, signal.SIGTERM)
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        assert code == 0 or sys.exc_info()[0], "the compactor failed"

    def _compact_always(self) -> int:
        dice, parent_pid, ended = random.Random(self._seed), os.getppid(), False

        def end(number: int, frame: object) -> None:
            nonlocal ended
            ended = True

        signal.signal(signal.SIGTERM, end)
        while not ended:
            pid = os.fork()
            if not pid:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                _compact(self._rig, self._bell, dice.randrange(1 << 32))
            until_s = time.monotonic() + (dice.random() * 0.5 if self._are_killed else _NEVER)
            while not (ended or time.monotonic() > until_s or _has_ended(pid)):
                time.sleep(0.005)
                # Whoever was to say so may have been killed.
                ended |= os.getppid() != parent_pid
            os.kill(pid, signal.SIGKILL)
            if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != -signal.SIGKILL:
                return 1
        return 0


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _compact(rig: Rig, bell: int, seed: int) -> None:
    """As the compactor's process does it."""
    try:
        assert isinstance(rig.files, HesitantFiles)
        assert rig.store is not None
        dice = rig.files.dice = random.Random(seed)
        store = rig.store.present(writable=True)
        compactor = Compactor(store)
        store.let_go_older()
        store.cut.let_go()
        store.control[Counter.COMPACTOR_IDLE] = 0
        while True:
            is_busy = [work() for work in dice.sample([compactor.step, compactor.give_back, compactor.squeeze], 3)]
            compactor.tidy()
            if any(is_busy):
                os.eventfd_write(bell, 1)
            else:
                time.sleep(0.001)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)
