"""Owing less: blocks that hold nothing, and blocks that the imager already has.

Neither is preserved any more when it is overwritten. A block that a write is about to preserve at this very
moment is left out; that costs its space and nothing else. A block that the compactor is moving at this very moment
gets a record after all: what was released while it worked is *late*, and looked at again once it is idle.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from cow.giveback import GiveBack
from cow.layout import Counter, Durability
from cow.losses import count_marked
from cow.seal import free_is_noted, seal_free
from cow.store import Store
from cow.traffic import Claims


class Relief:
    """For the present cut of ``store``; does nothing once there is a newer one. ``lock`` is the engine's."""

    def __init__(self, store: Store, lock: threading.Lock, claims: Claims) -> None:
        self._store, self._cut, self._lock, self._claims = store, store.cut, lock, claims
        self._control = store.control
        self._is_power = store.header.durability is Durability.POWER
        self._give_back = GiveBack(store.cut, store.files)
        self._late: list[tuple[int, int]] = []

    @property
    def _is_over(self) -> bool:
        return self._store.cut is not self._cut

    def settle_free(self, free_runs: Iterable[tuple[int, int]]) -> int:
        """The map is known: these blocks hold nothing, so they are owed no more; how many were owed.

        A cut's map is made known once; another one does nothing. The runs are gone through twice.
        OSError(ENOSPC): the blocks not reached yet stay owed, which is safe.
        """
        cut, count = self._cut, 0
        if self._is_over or free_is_noted(cut):
            return 0
        for first, end in free_runs:
            cut.free.set_range(first, end)
        # Known and proven to be free before the first is settled: a settled block that nothing explains is damage.
        seal_free(cut, self._store.files)
        for first, end in free_runs:
            with self._lock:
                if self._is_over:
                    break
                self._control[Counter.FREE_BLOCKS] += end - first
                self._miss_no_more(first, end)
                count += self._settle_run(first, end)
        return count

    def release(self, first: int, end: int) -> int:
        """The imager has these blocks: nothing is owed for them, and their copies are given back.

        Returns how many were not released before. One call at a time.
        """
        cut, control, count = self._cut, self._control, 0
        with self._lock:
            parts = list(self._claims.unclaimed(first, end))
            for low, high in parts:
                # Released before settled: a reader that finds a block settled looks at this last.
                count += high - low - cut.released.count_set(low, high)
                self._miss_no_more(low, high)
                cut.released.set_range(low, high)
        if self._is_power:
            # A power loss must not make a block look owed that was overwritten without being preserved.
            self._store.files.sync(cut.released.file.fd)
        with self._lock:
            if self._is_over:
                return 0
            control[Counter.RELEASED_BLOCKS] += count
            for low, high in parts:
                self._settle_run(low, high)
        if not control[Counter.COMPACTOR_IDLE]:
            self._note_late(first, end)
        self._return_records(first, end)
        return count

    def look_again(self) -> bool:
        """Give back what was stored after its release; False while the compactor works. Not beside ``release``."""
        if self._late and not self._control[Counter.COMPACTOR_IDLE]:
            return False
        late, self._late = self._late, []
        for first, end in late:
            self._return_records(first, end)
        return True

    def _note_late(self, first: int, end: int) -> None:
        if self._late and self._late[-1][1] == first:
            first, _ = self._late.pop()
        self._late.append((first, end))

    def _return_records(self, first: int, end: int) -> None:
        returned_bytes = self._give_back.give_back(first, end)
        with self._lock:
            if not self._is_over:
                self._control[Counter.RETURNED_BYTES] += returned_bytes

    def _miss_no_more(self, first: int, end: int) -> None:
        """Nobody will ask for these blocks, so those among them that are lost count no more."""
        lost_blocks = self._control[Counter.LOST_BLOCKS]
        if lost_blocks:
            self._control[Counter.LOST_BLOCKS] = max(0, lost_blocks - count_marked(self._cut, first, end))

    def _settle_run(self, first: int, end: int) -> int:
        cut, settled = self._cut, 0
        for low, high in self._claims.unclaimed(first, end):
            settled += high - low - cut.settled.count_set(low, high)
            cut.settled.set_range(low, high)
        self._control[Counter.SETTLED_BLOCKS] += settled
        return settled
