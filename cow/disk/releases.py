"""What was released, on its way from the live server to the compactor, which gives the copies of it back.

A few ranges of blocks in memory that both inherit; one process puts, one takes. When there is no room for another
range the compactor is told to look at the whole maps of released blocks instead: it never misses one.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

# How often was put, taken, and found full; then the ranges, round and round.
_PUT, _TAKEN, _FULL, _RANGES = 0, 1, 2, 3


class ReleasedRange(NamedTuple):
    """Blocks `first` to `end` of the cut of that generation."""

    generation: int
    first: int
    end: int


class ReleaseQueue:
    """It lies in `page`, which is all zeros at first."""

    def __init__(self, page: memoryview) -> None:
        self._numbers = page.cast("Q")
        self._room = (len(self._numbers) - _RANGES) // len(ReleasedRange._fields)
        self._putting = threading.Lock()
        # A compactor looks at the whole map when it starts.
        self._seen_full = self._numbers[_FULL]

    def put(self, released: ReleasedRange) -> None:
        """For the live server, which uses one queue in all its threads: its bits are set."""
        with self._putting:
            numbers, number = self._numbers, self._numbers[_PUT]
            if number - numbers[_TAKEN] >= self._room:
                numbers[_FULL] += 1
                return
            at = self._place(number)
            for place, value in enumerate(released, at):
                numbers[place] = value
            # Last: from here on it may be taken.
            numbers[_PUT] = number + 1

    def take(self) -> ReleasedRange | None:
        """For the compactor: the next one, None when there is none."""
        numbers, number = self._numbers, self._numbers[_TAKEN]
        if number >= numbers[_PUT]:
            return None
        at = self._place(number)
        found = ReleasedRange(*numbers[at : at + len(ReleasedRange._fields)])
        numbers[_TAKEN] = number + 1
        return found

    def has_overflowed(self) -> bool:
        """For the compactor: whether any was refused since it last asked; it looks at the whole map then."""
        full = self._numbers[_FULL]
        is_new, self._seen_full = full != self._seen_full, full
        return is_new

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to take and nothing was refused."""
        numbers = self._numbers
        return numbers[_TAKEN] >= numbers[_PUT] and numbers[_FULL] == self._seen_full

    def _place(self, number: int) -> int:
        return _RANGES + number % self._room * len(ReleasedRange._fields)
