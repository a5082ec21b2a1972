"""Which records are to be given back next: of whatever cut, as the live server tells (`ReleaseQueue`) or as its map
of released blocks says.

What is lost on the way is found in the maps: by the next compactor, which looks at all of them, and whenever fewer
need what a cut has, for then the live server tells of the whole of it. So a range is left out without harm while
entries are being copied from its cut or into it (`Followed.may_lose_records`): that ends with such a word.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator

from cow.compact.followed import Followed
from cow.compact.giveback import GiveBack
from cow.compact.needs import Needs
from cow.disk.cut import Cut
from cow.disk.layout import CutCounter
from cow.disk.releases import ReleasedRange
from cow.disk.segment_files import present_segments
from cow.disk.served import Served
from cow.disk.store import Store
from cow.errors import CowError


class Released:
    """For the compactor's thread only, which follows the list of cuts before each step."""

    def __init__(self, store: Store, followed: Followed) -> None:
        self._store, self._followed, self._releases = store, followed, store.releases
        self._block_count = store.geometry.block_count
        # The cuts whose map is to be looked at. What was released before this process began, nobody tells.
        self._whole = deque(followed.generations)
        self._steps = self._no_steps()

    @property
    def is_done(self) -> bool:
        """Whether nothing was released since the last `give_back` that returned False."""
        return not self._whole and self._releases.is_empty

    def look_at(self, generation: int) -> None:
        """At the whole map of that cut."""
        if generation not in self._whole:
            self._whole.append(generation)

    def give_back(self) -> bool:
        """Give back what a piece of released blocks holds; False when there is no such piece."""
        while not next(self._steps, False):
            released = self._next()
            if released is None:
                return False
            self._steps = self._steps_of(*released)
        return True

    def _next(self) -> ReleasedRange | None:
        if self._releases.has_overflowed():
            self._whole = deque(self._followed.generations)
        if self._whole:
            return ReleasedRange(self._whole.popleft(), 0, self._block_count)
        return self._releases.take()

    def _steps_of(self, generation: int, first: int, end: int) -> Generator[bool]:
        """One after each piece; the list of cuts may be another then."""
        if not self._followed.may_lose_records(generation):
            return
        with contextlib.ExitStack() as held:
            try:
                cut = self._followed.hold(generation)
                held.callback(cut.let_go)
                # Looked at once: what is released from here on is told of, and a cut before may need it.
                has_released = cut.numbers[CutCounter.RELEASED_BLOCKS] > 0
                served = self._followed.held_before(generation, held) if has_released else Served()
            except (OSError, ValueError, CowError):
                return  # the next compactor looks again
            give_back = GiveBack(self._store, cut, Needs(cut.released, served))
            for low, high in give_back.pieces(first, end) if has_released else ():
                if not self._followed.may_lose_records(generation) or not cut.numbers.is_kept:
                    return
                give_back.give_back(low, high)
                yield True
            if (first, end) == (0, self._block_count):
                yield from self._leftovers(give_back, cut)

    def _leftovers(self, give_back: GiveBack, cut: Cut) -> Generator[bool]:
        """What is in segments of cuts that were merged into this one, and of no use to it."""
        for segment_no, generation, _ in present_segments(cut.segments.directory):
            if not self._followed.was_merged_into(generation, cut.generation):
                continue
            for records in give_back.unnamed(segment_no):
                if not self._followed.may_lose_records(cut.generation):
                    return
                if records:
                    give_back.free(segment_no, records)
                    yield True

    @staticmethod
    def _no_steps() -> Generator[bool]:
        yield from ()

    def close(self) -> None:
        """Let go of what is held between two steps."""
        self._steps.close()
