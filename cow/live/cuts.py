"""The cuts of a store while it is in use: which there are, and what of each is owed and kept for nobody.

Every change of their list (`Chain`) has the same consequences: a header that survives a power loss where that was
promised, work for the compactor, and blocks that are released or owed no more (`Relief`).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Container, Iterable

from cow.disk.cut import Cut
from cow.disk.header import CutHeader, flush_header
from cow.disk.layout import Durability
from cow.disk.served import served_before
from cow.disk.store import Store
from cow.errors import SnapshotEnded
from cow.live.chain import Chain
from cow.live.claiming import Claims
from cow.live.ending import Ending
from cow.live.merging import is_to_be_given_up
from cow.live.relief import Reliefs
from cow.live.size import BufferSize


class LiveCuts:
    """Thread-safe. `lock` is the engine's."""

    def __init__(
        self,
        store: Store,
        lock: threading.Lock,
        chain: Chain,
        reliefs: Reliefs,
        ending: Ending,
        size: BufferSize,
        wake_compactor: Callable[[], None],
    ) -> None:
        self._store, self._lock, self._chain, self._reliefs = store, lock, chain, reliefs
        self._ending, self._size, self._wake_compactor = ending, size, wake_compactor
        self._is_power = store.header.durability is Durability.POWER

    def enter(self, cut: Cut, facts: CutHeader) -> list[Cut]:
        """See `Chain.enter`; `begin_cut` follows."""
        return self._chain.enter(cut, facts)

    def begin_cut(self, cut: Cut, claims: Claims) -> None:
        """It is the newest (lock held)."""
        self._reliefs.begin_cut(cut, claims)

    def forget(self, generation: int) -> list[Cut]:
        """A snapshot is over: its readers fail from here on. What nobody needs any more is returned, for the caller
        to let go. When it was the last, nothing is owed until the next cut. OSError: nothing changed. SnapshotEnded:
        it is over already."""
        gone = self._chain.forget(generation, self._ending.end_unneeded)
        self._after_change()
        return gone

    def hold_checkpoint(self, snapshot_id: bytes, holder: str) -> None:
        """See `Chain.hold`."""
        self._chain.hold(snapshot_id, holder)
        self._after_change()

    def let_go_checkpoints(self, holder: str, kept: Container[bytes]) -> list[Cut]:
        """See `Chain.let_go`; what nobody needs any more is the caller's to let go."""
        gone = self._chain.let_go(holder, kept, self._ending.end_unneeded)
        self._after_change()
        return gone

    def name(self, generation: int, name: str) -> None:
        """See `Chain.name`."""
        self._chain.name(generation, name)
        self._flush_header()

    def merge(self) -> Cut | None:
        """See `Chain.merge`; for the caller to let go."""
        self._give_up()
        merged = self._chain.merge()
        if merged is not None:
            with self._lock:
                self._size.forget_older()
            self._after_change()
        return merged

    def _after_change(self) -> None:
        self._flush_header()
        self._wake_compactor()
        self.settle_again()

    def _flush_header(self) -> None:
        """It was renamed in quickly, for a cut that may be waiting; a power loss would leave it empty, and of a store
        without a header nobody knows that its snapshots are lost."""
        if not self._is_power:
            # Then it comes to the disk with all the rest.
            with contextlib.suppress(OSError):
                flush_header(self._store.path, self._store.files)

    def settle_again(self) -> None:
        """Snapshots are over, perhaps all of them: what only they needed is released, and owed no more."""
        self._give_up()
        if self._store.cut.numbers.is_kept and served_before(self._store.header, self._store.older).is_all:
            # What is not settled for want of room is owed, which is right.
            with contextlib.suppress(OSError, SnapshotEnded):
                self._reliefs.newest.settle_again()

    def _give_up(self) -> None:
        """Checkpoints, and what else is hidden for longer, hold nothing for readers."""
        store = self._store
        for cut in store.cuts:
            if is_to_be_given_up(store.header, cut):
                # What is not released for want of room waits for the next time.
                with contextlib.suppress(OSError, SnapshotEnded):
                    self._reliefs.of(cut).give_up()

    def settle_free(self, free_runs: Iterable[tuple[int, int]], cut: Cut) -> int:
        """The map of `cut` is known: see `Relief.settle_free`. Of one that is over nothing is done."""
        relief = self._reliefs.newest
        return relief.settle_free(free_runs) if relief.cut is cut else 0

    def release(self, first: int, end: int, cut: Cut | None = None) -> int:
        """The imager has these blocks of `cut`, without it the present one: see `Relief.release`."""
        try:
            return self._reliefs.of(cut or self._reliefs.newest.cut).release(first, end)
        finally:
            self._wake_compactor()
