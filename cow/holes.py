"""Holes as lseek asks for them: what is surely zeros, and takes no room. All else is data, also where it is zeros.

They come as `start, end` in bytes, in order, none empty; neighbours may touch.
"""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]


def next_data(holes: Iterable[Range], offset: int, stop: int) -> int | None:
    """Where the first data from `offset` on is; None when all up to `stop` is a hole."""
    for start, end in holes:
        if start > offset:
            return offset
        offset = max(offset, end)
    return offset if offset < stop else None


def next_hole(holes: Iterable[Range], offset: int, stop: int) -> int:
    """Where the first hole from `offset` on is; there is one at `stop`."""
    for start, _ in holes:
        return max(start, offset)
    return stop


def between(holes: Iterable[Range], offset: int, stop: int) -> Iterable[Range]:
    """The data in that range."""
    for start, end in holes:
        if offset < start:
            yield offset, start
        offset = end
    if offset < stop:
        yield offset, stop


def clipped(holes: Iterable[Range], offset: int, stop: int) -> Iterable[Range]:
    """What of them is in that range."""
    for start, end in holes:
        low, high = max(start, offset), min(end, stop)
        if low < high:
            yield low, high
