"""How far the imager is: numbers for whoever shows them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

# Often enough for eyes, seldom enough that asking for the side buffer costs nothing.
_REPORT_S: Final = 0.25
# The rate is that of the last seconds: long enough to be steady, short enough to notice a change.
_WINDOW_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Progress:
    """One report. `phase` is what is being done: "backup", "verify" or "restore"; `is_done` on its last one."""

    phase: str
    done_bytes: int
    total_bytes: int
    bytes_per_s: float
    left_s: float | None
    buffer_bytes: int | None
    is_done: bool


Report = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """The report of those who do not want one."""


class Meter:
    """Counts the bytes of one phase and reports now and then."""

    def __init__(
        self, phase: str, total_bytes: int, report: Report, buffer_bytes: Callable[[], int | None] | None = None
    ) -> None:
        self._phase, self._total_bytes, self._report = phase, total_bytes, report
        self._buffer_bytes = buffer_bytes
        self._done_bytes = 0
        self._reported_s = 0.0
        self._seen = deque([(time.monotonic(), 0)])

    def advance(self, length: int) -> None:
        """`length` more bytes are done."""
        self._done_bytes += length
        now_s = time.monotonic()
        if now_s - self._reported_s >= _REPORT_S:
            self._tell(now_s, is_done=False)

    def finish(self) -> None:
        self._tell(time.monotonic(), is_done=True)

    def _tell(self, now_s: float, *, is_done: bool) -> None:
        self._reported_s = now_s
        self._seen.append((now_s, self._done_bytes))
        while now_s - self._seen[0][0] > _WINDOW_S and len(self._seen) > 2:
            self._seen.popleft()
        then_s, then_bytes = self._seen[0]
        rate = (self._done_bytes - then_bytes) / (now_s - then_s) if now_s > then_s else 0.0
        left_s = (self._total_bytes - self._done_bytes) / rate if rate else None
        buffer_bytes = self._buffer_bytes() if self._buffer_bytes else None
        self._report(Progress(self._phase, self._done_bytes, self._total_bytes, rate, left_s, buffer_bytes, is_done))
