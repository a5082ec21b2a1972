"""Reading on past what cannot be read: narrowed down to single sectors or blocks, zeros in their place, a list.

Rules
- A read that fails is halved until what fails is one unit of the source. Only units that fail by themselves are
  unread; everything around them is read.
- Only an `UnreadableError` is passed over. Whatever says that more than these bytes is gone ends the backup.
- Free blocks are never unread: nobody needs them.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from snapfs.errors import SnapfsError

_ZEROS: Final = bytes(1 << 20)


class UnreadableError(SnapfsError):
    """The medium does not give these bytes; others beside them it may."""


class Ranges:
    """(offset, length) of bytes, in order; neighbours are one range."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for offset, length in ranges:
            self.add(offset, length)

    def add(self, offset: int, length: int) -> None:
        """The range must not overlap one that is there."""
        index = bisect_right(self._starts, offset)
        end = offset + length
        if index < len(self._starts) and self._starts[index] == end:
            end = self._ends.pop(index)
            self._starts.pop(index)
        if index and self._ends[index - 1] == offset:
            self._ends[index - 1] = end
        else:
            self._starts.insert(index, offset)
            self._ends.insert(index, end)

    def within(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The parts that lie in the range."""
        index = max(bisect_right(self._starts, offset) - 1, 0)
        while index < len(self._starts) and self._starts[index] < offset + length:
            start, end = max(self._starts[index], offset), min(self._ends[index], offset + length)
            if start < end:
                yield start, end - start
            index += 1

    def outside(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """What is left of the range without them."""
        at = offset
        for start, count in self.within(offset, length):
            if start > at:
                yield at, start - at
            at = start + count
        if at < offset + length:
            yield at, offset + length - at

    @property
    def total_bytes(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((start, end - start) for start, end in zip(self._starts, self._ends, strict=True))

    def __len__(self) -> int:
        return len(self._starts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ranges) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class Rereadable(Protocol):
    """A source that can be read again in small pieces; both methods raise UnreadableError for what is bad."""

    def read_into(self, view: memoryview, offset: int) -> None: ...

    def reread_into(self, view: memoryview, offset: int) -> None:
        """As `read_into`, and what it says is of these bytes alone, not of a page or of what is read ahead."""

    def reread_unit_bytes(self) -> int:
        """A power of two: what can fail by itself."""


class Salvager:
    """`read_into` gives zeros for what cannot be read, and notes it in `unread`. One thread reads, others may ask."""

    def __init__(self, source: Rereadable, unread: Ranges) -> None:
        self._source, self._unread = source, unread
        self._lock = threading.Lock()

    def read_into(self, view: memoryview, offset: int) -> None:
        """SnapfsError: more than some bytes is gone."""
        try:
            self._source.read_into(view, offset)
        except UnreadableError:
            self._narrow(view, offset, self._source.reread_unit_bytes())

    def _narrow(self, view: memoryview, offset: int, unit_bytes: int) -> None:
        todo = [(0, len(view))]
        while todo:
            start, stop = todo.pop()
            try:
                self._source.reread_into(view[start:stop], offset + start)
            except UnreadableError:
                half = (stop - start) // 2 // unit_bytes * unit_bytes or unit_bytes
                if start + half < stop:
                    todo += [(start + half, stop), (start, start + half)]
                    continue
                view[start:stop] = _ZEROS[: stop - start]
                with self._lock:
                    self._unread.add(offset + start, stop - start)

    def unread_in(self, offset: int, length: int) -> list[tuple[int, int]]:
        """What of the range, which has been read, could not be."""
        with self._lock:
            return list(self._unread.within(offset, length))


def pieces_with_zeros(view: memoryview, offset: int, ranges: Ranges) -> Iterator[memoryview | bytes]:
    """`view`, which is at `offset`, piece by piece as it would be with zeros in `ranges`."""
    at = offset
    for start, length in ranges.within(offset, len(view)):
        if start > at:
            yield view[at - offset : start - offset]
        for done in range(0, length, len(_ZEROS)):
            yield _ZEROS[: min(len(_ZEROS), length - done)]
        at = start + length
    if at < offset + len(view):
        yield view[at - offset :]
