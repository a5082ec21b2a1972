"""The process that thaws when the one that froze cannot: it was killed, or takes too long.

    parent                          memory of both             watchdog
    starts the time                                            has `timeout_s` from now on
    marks a target TOUCHED          one byte a target          waits on the pipe
    freezes it, marks it REFUSED
      when that failed
    asks `expired`, cuts            EXPIRED                    time is over: sets it, thaws again and again
    thaws, marks it THAWED
    sets DONE, closes the pipe      DONE                       pipe closed: thaws what is TOUCHED unless DONE

Rules:
- Forked before the first freeze, it says that it is ready before anything is frozen. It has the descriptors
  already; it opens no file, logs nothing, and keeps its memory from being paged out.
- It may go on for long after the parent, so it closes what is not needed for a thaw: the live view can be unmounted.
- It is in a session of its own and ignores the signals that end the parent from a terminal.
- One thread a target: a thaw waits while a freeze is under way, and must not keep the others waiting.
- While the parent lives, a thaw is tried again and again: the parent may be about to freeze.
"""

from __future__ import annotations

import mmap
import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, Protocol

from snapfs.errors import SnapfsError
from snapfs.system import libc
from snapfs.system.processes import detach_streams, readable, set_oom_score, set_process_name

_DONE, _EXPIRED, _STATES = 0, 1, 16
_TOUCHED, _REFUSED, _THAWED = 1, 2, 3
_AGAIN_S: Final = 0.05
_GIVE_UP_S: Final = 600.0  # a filesystem whose device fails may refuse its thaw for ever
_STACK_BYTES: Final = 256 << 10
_IGNORED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP)


class Frozen(Protocol):
    """What can be thawed."""

    def thaw(self) -> bool:
        """Thaw it; False when it was not frozen (any more). OSError: try again."""
        ...


class Watchdog:
    """Use it around the freeze: `with Watchdog(targets, timeout_s) as watchdog`. `unneeded_fds` are open in the
    parent and closed in the watchdog."""

    def __init__(self, targets: Sequence[Frozen], timeout_s: float, unneeded_fds: Sequence[int] = ()) -> None:
        self._targets, self._timeout_s, self._unneeded_fds = targets, timeout_s, unneeded_fds
        self._shared = mmap.mmap(-1, _STATES + max(1, len(targets)))
        self._pid = self._pipe_fd = -1

    def __enter__(self) -> Watchdog:
        pipe_read, self._pipe_fd = os.pipe2(os.O_CLOEXEC)
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        self._pid = os.fork()
        if not self._pid:
            os.close(self._pipe_fd)
            os.close(ready_read)
            self._run(pipe_read, ready_write)
        os.close(pipe_read)
        os.close(ready_write)
        is_ready = os.read(ready_read, 1)
        os.close(ready_read)
        if not is_ready:
            self._end()
            raise SnapfsError("The watchdog that thaws in an emergency could not be started; nothing was frozen.")
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    # --- for the parent --------------------------------------------------------------------------------------

    @property
    def expired(self) -> bool:
        """Whether the time is over: what was frozen is not, or not for long."""
        return bool(self._shared[_EXPIRED])

    def start(self) -> None:
        """The time begins to run."""
        os.write(self._pipe_fd, b"+")

    def note_touched(self, target_no: int) -> None:
        """Before a target is frozen."""
        self._shared[_STATES + target_no] = _TOUCHED

    def note_refused(self, target_no: int) -> None:
        """It was not frozen by us, so it must not be thawed by us."""
        self._shared[_STATES + target_no] = _REFUSED

    def note_thawed(self, target_no: int) -> None:
        self._shared[_STATES + target_no] = _THAWED

    def _end(self) -> None:
        """What is touched and not thawed stays the watchdog's business, and is not waited for."""
        all_thawed = not any(self._is_touched(target_no) for target_no in range(len(self._targets)))
        self._shared[_DONE] = all_thawed
        os.close(self._pipe_fd)
        os.waitpid(self._pid, 0 if all_thawed else os.WNOHANG)

    def _is_touched(self, target_no: int) -> bool:
        return self._shared[_STATES + target_no] == _TOUCHED

    # --- the watchdog ----------------------------------------------------------------------------------------

    def _run(self, pipe_fd: int, ready_fd: int) -> None:
        """In the child: never returns."""
        try:
            _harden()
            for fd in self._unneeded_fds:
                with suppress(OSError):  # a view whose server has died tells of that, and is closed
                    os.close(fd)
            begin, closed = threading.Event(), threading.Event()
            threading.stack_size(_STACK_BYTES)
            threads = [
                threading.Thread(target=self._thaw_one, args=(target_no, begin, closed))
                for target_no in range(len(self._targets))
            ]
            for thread in threads:
                thread.start()
            os.write(ready_fd, b"+")
            os.close(ready_fd)
            if os.read(pipe_fd, 1) and not _is_closed(pipe_fd, self._timeout_s):
                self._shared[_EXPIRED] = 1
                begin.set()
                _is_closed(pipe_fd, None)
            closed.set()
            begin.set()
            for thread in threads:
                thread.join()
        finally:
            os._exit(0)

    def _thaw_one(self, target_no: int, begin: threading.Event, closed: threading.Event) -> None:
        begin.wait()
        give_up = time.monotonic() + _GIVE_UP_S
        while not self._shared[_DONE]:
            # Asked first: when the parent is gone, the thaw below comes after all its freezing.
            is_last = closed.is_set()
            thawed = True
            if self._is_touched(target_no):
                try:
                    self._targets[target_no].thaw()
                except OSError:
                    thawed = False
            if is_last and (thawed or time.monotonic() > give_up):
                return
            time.sleep(_AGAIN_S)


def _harden() -> None:
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.setsid()
    os.chdir("/")
    detach_streams()
    set_process_name("snapfs-watchdog")
    set_oom_score(-1000)
    lock_memory()


def _is_closed(pipe_fd: int, timeout_s: float | None) -> bool:
    """Wait until the parent has closed the pipe, or is gone; False when the time was over first."""
    return bool(readable([pipe_fd], timeout_s))


def lock_memory() -> None:
    """Keep this process in memory; without permission it is only likely to stay there."""
    with suppress(OSError):
        libc.mlockall(libc.MCL_CURRENT | libc.MCL_FUTURE)


def unlock_memory() -> None:
    with suppress(OSError):
        libc.munlockall()
