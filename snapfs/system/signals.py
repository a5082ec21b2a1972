"""Signals that end a command, held back while it must not end.

SIGINT, SIGTERM and SIGHUP all raise KeyboardInterrupt, so that what was begun is undone; those that whoever started
the command has it ignore (nohup, a job in the background) stay ignored. Only the first raises by itself: a terminal
that is closed, or a user who is impatient, sends several, and what undoes the one must not be broken off by the next.
Whoever asks (`check`, `heard`) is told each time.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """Use `with Signals.handled() as signals`, in the main thread."""

    def __init__(self) -> None:
        self._received = self._is_deferred = self._has_raised = self._is_held = False

    @classmethod
    @contextmanager
    def handled(cls) -> Iterator[Signals]:
        signals = cls()
        heard = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
        old = {number: signal.signal(number, signals._on_signal) for number in heard}
        try:
            yield signals
        finally:
            for number, handler in old.items():
                # What stays is not to be called ended in the last moments of the process either.
                signal.signal(number, signal.SIG_IGN if signals._is_held else handler)

    def _on_signal(self, *_: Any) -> None:
        self._received = True
        if not (self._is_deferred or self._has_raised or self._is_held):
            self._raise()

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals raise nothing inside, not even at the end; `check` there does."""
        outer, self._is_deferred = self._is_deferred, True
        try:
            yield
        finally:
            self._is_deferred = outer

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Within `deferred`: inside they raise, at once when one has come, and after it nothing again."""
        self._is_deferred = False
        try:
            self.check()
            yield
        finally:
            self._is_deferred = True

    def hold(self) -> None:
        """From now on, and until the process has ended, they do nothing: what was begun is done, and stays."""
        self._is_held = True

    def check(self) -> None:
        """KeyboardInterrupt when a signal has come."""
        if self._received:
            self._raise()

    def _raise(self) -> None:
        self._has_raised = True
        raise KeyboardInterrupt
