"""Keeping the resident memory of the servers small, however much of the maps they touch.

The pages of a mapped file stay in the kernel's page cache when a process lets go of them, so this costs a
fault each when they are used again, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

from snapfs.system.processes import MappedMemory

# Beyond what stays mapped after a trim: the ring and the program files.
_MOST_TO_TRIM_BYTES = 16 << 20


class MemoryWatch:
    """Calls `trim` when too much is mapped; looks once in `calls_per_look` calls."""

    def __init__(self, trim: Callable[[], None], calls_per_look: int = 1024) -> None:
        self._trim, self._calls_per_look = trim, calls_per_look
        self._calls = self._lasting_bytes = 0
        self._mapped = MappedMemory()

    def tick(self) -> None:
        """Once a request."""
        self._calls += 1
        if self._calls >= self._calls_per_look:
            self._calls = 0
            self.look()

    def look(self) -> None:
        """Trim now if there is need to."""
        if self._mapped.bytes() > self._lasting_bytes + _MOST_TO_TRIM_BYTES:
            self._trim()
            self._lasting_bytes = self._mapped.bytes()
