"""The supervisor's part: which event is told next, and what becomes of whoever tells it.

Rules:
- One event after the other, in the order in which they happened. Nothing here waits, but at the end.
- Who is slow does not make others pile up without end: what is too much is dropped, and that is said.
- When the instance ends, what is under way has a little time, then it is killed with its hook.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from snapfs.events.hooks import EVENT_KEY, HOOK_TIMEOUT_S
from snapfs.freezing.hooks import hook_environment
from snapfs.log import log_fd
from snapfs.system.processes import program, readable

_LOG = logging.getLogger(__name__)
_MAX_WAITING: Final = 64
_LAST_S: Final = 2.0
_KILL_S: Final = 1.0

Facts = Mapping[str, str]


class EventQueue:
    """`directory` has the hooks, None: nobody is told. `known` gives what is told with every event."""

    def __init__(
        self, directory: Path | None, selector: selectors.BaseSelector, known: Callable[[], dict[str, str]]
    ) -> None:
        self._directory, self._selector, self._known = directory, selector, known
        self._waiting: deque[Facts] = deque()
        self._running: subprocess.Popen[bytes] | None = None
        self._pidfd = -1

    def add(self, facts: Facts) -> None:
        """Something has happened."""
        if self._directory is None:
            return
        if len(self._waiting) >= _MAX_WAITING:
            _LOG.warning("the hooks are too slow: they are not told of %s", facts.get(EVENT_KEY))
            return
        self._waiting.append({**self._known(), **facts})
        self._start_next()

    def _start_next(self) -> None:
        while self._running is None and self._waiting:
            facts = self._waiting.popleft()
            try:
                self._start(facts)
            except OSError as error:
                _LOG.warning("the hooks cannot be told of %s: %s", facts.get(EVENT_KEY), error.strerror)

    def _start(self, facts: Facts) -> None:
        log = log_fd()
        # What a hook says is of those who read the log.
        running = subprocess.Popen(
            [*program("snapfs.events.runner"), str(self._directory), f"{HOOK_TIMEOUT_S:g}", str(log)],
            env=hook_environment(facts),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd="/",
            pass_fds=(log,),
            start_new_session=True,
        )
        try:
            self._pidfd = os.pidfd_open(running.pid)
        except OSError:
            # Of its end nobody would hear, and all events after it would wait for that.
            running.kill()
            running.wait()
            raise
        self._running = running
        self._selector.register(self._pidfd, selectors.EVENT_READ, self._on_end)

    def _on_end(self) -> None:
        self._bury()
        self._start_next()

    def _bury(self) -> None:
        if self._running is None:
            return
        self._selector.unregister(self._pidfd)
        os.close(self._pidfd)
        # One that hangs in the kernel, killed or not, is not waited for.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._running.wait(0)
        self._running = None

    def finish(self) -> None:
        """The instance ends: tell what is left as far as there is time."""
        until = time.monotonic() + _LAST_S
        while self._running is not None:
            if not readable([self._pidfd], max(0.0, until - time.monotonic())):
                self._end_running(self._running)
                self._waiting.clear()
            self._on_end()

    def _end_running(self, running: subprocess.Popen[bytes]) -> None:
        if self._waiting:
            _LOG.warning("the hooks are not told of %d more events: the instance ends", len(self._waiting))
        running.terminate()
        if not readable([self._pidfd], _KILL_S):
            running.kill()
            readable([self._pidfd], _KILL_S)
