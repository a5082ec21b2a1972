"""Owing less: blocks that hold nothing, and blocks that the imager already has.

Neither is preserved any more when it is overwritten. A block that a write is about to preserve at this very
moment is left out; that costs its space and nothing else. What of released blocks was preserved the compactor gives
back, when it has been told (`ReleaseQueue`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from cow.disk.bitmaps import Bitmap
from cow.disk.blocks import count_lost
from cow.disk.cut import Cut
from cow.disk.layout import CutCounter, Durability
from cow.disk.releases import ReleasedRange
from cow.disk.seal import free_is_noted, seal_free
from cow.disk.store import Store
from cow.errors import SnapshotEnded
from cow.live.claiming import Claims
from cow.live.losses import Runs

_PIECE_BLOCKS = 1 << 18


class Relief:
    """For one cut of `store`; does nothing once that is over. `lock` is the engine's."""

    def __init__(self, store: Store, cut: Cut, lock: threading.Lock, claims: Claims) -> None:
        self._store, self.cut, self._lock, self._claims = store, cut, lock, claims
        self._numbers, self._releases = cut.numbers, store.releases
        self._is_power = store.header.durability is Durability.POWER

    def settle_free(self, free_runs: Iterable[tuple[int, int]]) -> int:
        """The map is known: these blocks hold nothing, so they are owed no more; how many were owed.

        A cut's map is made known once: the next call goes on with that one, whatever it brings.
        OSError(ENOSPC): the blocks not reached yet stay owed, which is safe. SnapshotEnded: there is a newer cut.
        """
        with self.cut.held():
            return self._settle_free(free_runs)

    def _settle_free(self, free_runs: Iterable[tuple[int, int]]) -> int:
        cut, count = self.cut, 0
        if not free_is_noted(cut):
            for first, end in free_runs:
                cut.free.set_range(first, end)
            # Known and proven to be free before the first is settled: what is settled for no reason is damage.
            seal_free(cut, self._store.files)
        self._know_free()
        for first, end in (piece for run in cut.free.set_runs() for piece in _pieces(*run)):
            with self._lock:
                self._check()
                count += self._settle_run(first, end, cut.free)
        return count

    def _know_free(self) -> None:
        """From here on the map of free blocks counts, as a whole: until then readers look at none of them."""
        cut, free_blocks = self.cut, self.cut.free.count()
        with self._lock:
            self._check()
            if not self._numbers[CutCounter.FREE_BLOCKS]:
                excused = sum(self._count_lost(*run, free_counts=False) for run in cut.free.set_runs())
                self._numbers[CutCounter.FREE_BLOCKS] = free_blocks
                self._numbers[CutCounter.EXCUSED_BLOCKS] += excused

    def release(self, first: int, end: int) -> int:
        """The imager has these blocks: nothing is owed for them, and their copies will be given back.

        Returns how many were not released before. One call at a time. SnapshotEnded: there is a newer cut.
        """
        with self.cut.held():
            try:
                return self._release(first, end)
            finally:
                # Also of a part: what is released is never read again.
                self._releases.put(ReleasedRange(self.cut.generation, first, end))

    def _release(self, first: int, end: int) -> int:
        cut, count, parts = self.cut, 0, Runs()
        for low, high in _pieces(first, end):
            with self._lock:
                self._check()
                for part in self._claims.unclaimed(low, high):
                    # Released before settled: a reader that finds a block settled looks at this last.
                    released_now = part[1] - part[0] - cut.released.count_set(*part)
                    excused = self._count_lost(*part)
                    cut.released.set_range(*part)
                    self._numbers[CutCounter.EXCUSED_BLOCKS] += excused
                    self._numbers[CutCounter.RELEASED_BLOCKS] += released_now
                    count += released_now
                    parts.append(part)
        if self._is_power:
            # A power loss must not make a block look owed that was overwritten without being preserved.
            self._store.files.sync(cut.released.file.fd)
        for part in parts:
            with self._lock:
                self._check()
                self._settle_run(*part, cut.released)
        return count

    def _check(self) -> None:
        if self.cut.is_over:
            raise SnapshotEnded(f"cut {self.cut.generation} has ended")

    def _count_lost(self, first: int, end: int, *, free_counts: bool = True) -> int:
        """The lost ones among these blocks: nobody will ask for them any more, so they will be excused."""
        if not self._numbers.lost_blocks:
            return 0
        return count_lost(self.cut, first, end, free_counts=free_counts)

    def _settle_run(self, first: int, end: int, reason: Bitmap) -> int:
        cut, settled = self.cut, 0
        assert reason.all_set(first, end), f"blocks {first} to {end - 1} would be settled for no reason"
        for low, high in self._claims.unclaimed(first, end):
            settled += high - low - cut.settled.count_set(low, high)
            cut.settled.set_range(low, high)
        self._numbers[CutCounter.SETTLED_BLOCKS] += settled
        return settled


def _pieces(first: int, end: int) -> Iterator[tuple[int, int]]:
    """So few blocks at once that nobody who waits for the lock notices."""
    for low in range(first, end, _PIECE_BLOCKS):
        yield low, min(low + _PIECE_BLOCKS, end)
