"""Telling calls that wait for the disk from calls that do not."""

from __future__ import annotations

import resource
import time

# A call that took longer than this waited: for the disk, or only for its turn on the processor.
_SLOW_NS = 8_000_000
_SUSPICION_NS = 500_000_000
_CAUTION_NS = 100_000_000


class Pace:
    """Remembers whether calls on the image have been waiting for the disk lately.

    A slow call raises a suspicion; while it lasts, calls count how often the kernel put this thread to sleep.
    A busy processor makes calls slow too, but does not put them to sleep.
    """

    def __init__(self) -> None:
        self._cautious_until_ns = self._suspicious_until_ns = 0
        self._sleeps = 0

    def is_quick(self, now_ns: int) -> bool:
        """Whether a call now can be made without a thread of its own."""
        if now_ns < self._suspicious_until_ns:
            self._sleeps = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
        return now_ns >= self._cautious_until_ns

    def note(self, started_ns: int) -> None:
        """A call that `is_quick` allowed at `started_ns` has returned."""
        now_ns = time.monotonic_ns()
        if now_ns - started_ns <= _SLOW_NS:
            return
        was_suspected = started_ns < self._suspicious_until_ns
        self._suspicious_until_ns = now_ns + _SUSPICION_NS
        if was_suspected and resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw != self._sleeps:
            self._cautious_until_ns = now_ns + _CAUTION_NS
