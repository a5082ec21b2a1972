"""Signals that end a command, held back while it must not end.

SIGINT, SIGTERM and SIGHUP all raise KeyboardInterrupt, so that what was begun is undone; those that whoever started
the command has it ignore (nohup, a job in the background) stay ignored.
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
        self._received = self._is_deferred = False

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
                signal.signal(number, handler)

    def _on_signal(self, *_: Any) -> None:
        self._received = True
        if not self._is_deferred:
            raise KeyboardInterrupt

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Signals raise nothing inside, not even at the end; `check` there does."""
        outer, self._is_deferred = self._is_deferred, True
        try:
            yield
        finally:
            self._is_deferred = outer

    def hold(self) -> None:
        """From now on they raise nothing: what was begun is done, and stays."""
        self._is_deferred = True

    def check(self) -> None:
        """KeyboardInterrupt when a signal has come."""
        if self._received:
            raise KeyboardInterrupt
