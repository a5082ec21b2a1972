"""The compactor process: moves staged blocks to segments when it disturbs least.

Nothing is gained by hurrying while the ring has room: a burst that ends soon is compacted after it. So the
compactor waits until the ring is three quarters full or the writes pause, unless a write already waits for room.
"""

from __future__ import annotations

import logging
import os
import select
import signal
from contextlib import suppress

from cow import Compactor, Counter
from snapfs.servers.instance import Instance
from snapfs.servers.memory import MemoryWatch
from snapfs.servers.process import STOP_SIGNAL, become_server
from snapfs.system.processes import detach_streams, readable

_LOG = logging.getLogger(__name__)
_HURRY_SHARE = 0.75
_PAUSE_S = 0.02
_SETTLE_S = 0.05
_RETRY_S = 0.2
_NICENESS = 5
_STEPS_PER_LOOK = 1


def run_compactor(instance: Instance) -> int:
    """Compact until stopped; then, if the store is kept, empty the ring. The process's exit code."""
    become_server("compactor", instance.supervisor_pid)
    os.nice(_NICENESS)
    if not instance.options.foreground:
        detach_streams()
    loop = _Loop(instance, _signal_pipe())
    signal.signal(STOP_SIGNAL, loop.on_stop)
    loop.run()
    return 0


def _signal_pipe() -> int:
    """Can be read once a signal has come. One that another thread gets, or that comes just before a wait, interrupts
    nothing, and its handler would run after the wait."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    return read_fd


class _Loop:
    def __init__(self, instance: Instance, signal_fd: int) -> None:
        self._instance, self._signal_fd = instance, signal_fd
        store = instance.store.present(writable=True)
        self._compactor = Compactor(store)
        # It follows from cut to cut, and holds none but the present one.
        store.let_go_older()
        store.cut.let_go()
        self._control = instance.store.control
        # The one before may have been killed while it waited.
        self._control[Counter.COMPACTOR_IDLE] = 0
        self._memory = MemoryWatch(self._compactor.trim, calls_per_look=_STEPS_PER_LOOK)
        self._stopped = self._complained = False

    def on_stop(self, signal_no: int, frame: object) -> None:
        self._stopped = True
        # A wait that it has interrupted goes on after this handler.
        self._instance.work.ring()

    def run(self) -> None:
        self._compactor.warm()
        while not self._stopped or self._is_needed():
            has_backlog = self._compactor.backlog_slots > 0
            is_hurried = has_backlog and self._is_hurried
            if is_hurried:
                self._step()
            # In turn with the steps: else writes that never pause would keep all that is released.
            if self._give_back() or is_hurried or not self._paused():
                continue
            if has_backlog:
                self._step()
                continue
            self._compactor.tidy()
            if not self._squeeze():
                self._idle()
        _LOG.debug("told to end with %d slots in the ring", self._compactor.backlog_slots)
        if self._instance.keeps_store and not self._is_orphan:
            self._drain()
        self._compactor.close()

    @property
    def _is_orphan(self) -> bool:
        return os.getppid() != self._instance.supervisor_pid

    def _is_needed(self) -> bool:
        """Without a supervisor the live server still gets what the kernel holds, and needs room for it."""
        return self._is_orphan and not readable([self._instance.live_pidfd], 0)

    @property
    def _is_hurried(self) -> bool:
        return bool(self._control[Counter.PRESSED]) or self._compactor.backlog_share >= _HURRY_SHARE

    def _idle(self) -> None:
        work, control = self._instance.work, self._control
        control[Counter.COMPACTOR_IDLE] = 1
        _LOG.debug("idle: the slots below %d of the ring are moved", control[Counter.FREED_SEQ])
        # A short wait first: a commit that did not see the flag yet is visible after it, and needs no bell.
        if not work.wait(_SETTLE_S) and self._compactor.is_done and not self._stopped:
            readable([work.fd, self._signal_fd])
            work.hush()
            self._hush_signals()
        control[Counter.COMPACTOR_IDLE] = 0

    def _hush_signals(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._signal_fd, select.PIPE_BUF)

    def _paused(self) -> bool:
        before = self._control[Counter.COMMITTED_SEQ]
        self._instance.work.wait(_PAUSE_S)
        return self._control[Counter.COMMITTED_SEQ] == before

    def _give_back(self) -> bool:
        try:
            has_given = self._compactor.give_back()
        except OSError as error:
            _LOG.info("nothing can be given back: %s", error.strerror)
            return False
        if has_given:
            self._memory.tick()
            if self._control[Counter.PRESSED]:
                self._instance.room.ring()
        return has_given

    def _squeeze(self) -> bool:
        try:
            has_squeezed = self._compactor.squeeze()
            self._memory.tick()
            return has_squeezed
        except OSError as error:
            _LOG.info("nothing can be squeezed: %s", error.strerror)
            return False

    def _step(self) -> None:
        try:
            self._compactor.step()
        except OSError as error:
            if not self._complained:
                _LOG.warning("the store cannot be written: %s", error.strerror)
            self._complained = True
            self._instance.room.ring()
            self._instance.work.wait(_RETRY_S)
            return
        self._complained = False
        self._memory.tick()
        if self._control[Counter.PRESSED]:
            self._instance.room.ring()

    def _drain(self) -> None:
        try:
            self._compactor.drain()
            while self._compactor.give_back():
                pass
        except OSError as error:
            _LOG.warning("the ring could not be emptied: %s", error.strerror)
