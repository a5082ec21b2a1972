"""Writes that wait for room in the side buffer, and the news they wait for."""

from __future__ import annotations

import threading
from collections.abc import Callable

from cow.disk.layout import Counter
from cow.disk.store import Store
from cow.errors import EngineClosed
from cow.live.traffic import Gate


class Pressing:
    """While there are any the compactor hurries, and tells of each slot that it frees. `changed` is the condition of
    the engine's lock."""

    def __init__(
        self, store: Store, changed: threading.Condition, gate: Gate, wake_compactor: Callable[[], None]
    ) -> None:
        self._control, self._changed, self._gate, self._wake_compactor = store.control, changed, gate, wake_compactor
        # Counts what they may have waited for (lock held).
        self.news = 0
        self.threads: set[int] = set()
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether nobody makes room any more."""
        return self._is_over

    def note(self) -> None:
        """There is news (lock held), which whoever looks next sees."""
        self.news += 1

    def tell(self) -> None:
        """There is news (lock held): who waits looks again."""
        self.note()
        self._gate.tell()

    def end(self) -> None:
        """There is no compactor any more (lock held): who waits fails with EngineClosed."""
        self._is_over = True
        self.tell()

    def wait(self, news: int) -> None:
        """This thread waits a little for room, unless there was any news since. EngineClosed: nobody makes room any
        more."""
        with self._changed:
            if self.news != news:
                return
            if self._is_over:
                raise EngineClosed("nobody makes room any more") from None
            self.threads.add(threading.get_ident())
            self._control[Counter.PRESSED] = 1
        self._wake_compactor()
        with self._changed:
            self._gate.wait_outside(lambda: self.news != news)

    def stop(self) -> None:
        """This thread waits no more."""
        if threading.get_ident() in self.threads:
            with self._changed:
                self.threads.remove(threading.get_ident())
                if not self.threads:
                    self._control[Counter.PRESSED] = 0
