"""Owing less: blocks that hold nothing, and blocks that the imager already has.

Neither is preserved any more when it is overwritten. Blocks are claimed while their bits are set, a piece at a time;
one that a write is about to preserve at that moment is left out, which costs its space and nothing else. What of
released blocks was preserved the compactor gives back, when it has been told (`ReleaseQueue`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

from cow.disk.bitmaps import Bitmap
from cow.disk.blocks import count_lost
from cow.disk.cut import Cut
from cow.disk.layout import CutCounter, Durability
from cow.disk.releases import ReleasedRange, ReleaseQueue
from cow.disk.seal import free_is_noted, seal_free
from cow.disk.served import served_before
from cow.disk.store import Store
from cow.errors import SnapshotEnded
from cow.live.claiming import Claims
from cow.live.losses import Runs
from cow.live.preserve import Claim

_PIECE_BLOCKS = 1 << 18


class _Claimed:
    """Within this, the parts of a run that nobody else claims are claimed."""

    def __init__(self, lock: threading.Lock, claims: Claims, first: int, end: int) -> None:
        self._lock, self._claims, self._run = lock, claims, (first, end)

    def __enter__(self) -> list[Claim]:
        with self._lock:
            self._taken = self._claims.take(*self._run)
        return self._taken

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._claims.remove(*self._taken)


class Relief:
    """For one cut of `store`; does nothing once that is over. `lock` is the engine's, `claims` are those of its time
    as the newest: in an older cut nobody preserves."""

    def __init__(
        self, store: Store, cut: Cut, lock: threading.Lock, claims: Claims | None, releases: ReleaseQueue
    ) -> None:
        self._store, self.cut, self._lock, self._claims = store, cut, lock, claims
        self._numbers, self._releases = cut.numbers, releases
        # One after the other: else each would leave out what the other is just at, and excuse a lost block twice.
        self._turn = threading.Lock()
        self._is_power = store.header.durability is Durability.POWER

    def settle_free(self, free_runs: Iterable[tuple[int, int]]) -> int:
        """The map is known: these blocks hold nothing, so they are owed no more; how many were owed.

        A cut's map is made known once: the next call goes on with that one, whatever it brings.
        OSError(ENOSPC): the blocks not reached yet stay owed, which is safe. SnapshotEnded: there is a newer cut.
        """
        with self._turn, self.cut.held():
            return self._settle_free(free_runs)

    def _settle_free(self, free_runs: Iterable[tuple[int, int]]) -> int:
        cut, count = self.cut, 0
        if not free_is_noted(cut):
            for first, end in free_runs:
                cut.free.set_range(first, end)
            # Known and proven to be free before the first is settled: what is settled for no reason is damage.
            seal_free(cut, self._store.files)
        self._know_free()
        for first, end in self._pieces_of_free():
            self._check()
            count += self._settle_unneeded(first, end, cut.free)
        return count

    def settle_again(self) -> None:
        """There is no cut before this one any more: what its own readers do not need is owed no more."""
        with self._turn, self.cut.held():
            if self._numbers[CutCounter.SETTLED_BLOCKS] == self.cut.settled.block_count:
                return
            reasons = [self.cut.released]
            if self._numbers[CutCounter.FREE_BLOCKS]:
                reasons.append(self.cut.free)
            for reason in reasons:
                for first, end in (piece for run in reason.set_runs() for piece in _pieces(*run)):
                    self._check()
                    self._settle_unneeded(first, end, reason)

    def _know_free(self) -> None:
        """From here on the map of free blocks counts, as a whole: until then readers look at none of them."""
        cut, numbers = self.cut, self._numbers
        if numbers[CutCounter.FREE_BLOCKS]:
            return
        free_blocks, is_known = cut.free.count(), False
        while not is_known:
            lost_blocks = numbers[CutCounter.LOST_BLOCKS]
            excused = sum(self._count_lost_free(*piece) for piece in self._pieces_of_free()) if lost_blocks else 0
            with self._lock:
                self._check()
                # What was lost meanwhile may be free and was not looked at; what will be is not counted any more.
                is_known = numbers[CutCounter.LOST_BLOCKS] == lost_blocks
                if is_known:
                    numbers[CutCounter.FREE_BLOCKS] = free_blocks
                    numbers.put(CutCounter.EXCUSED_BLOCKS, numbers[CutCounter.EXCUSED_BLOCKS] + excused)
        numbers.keep()

    def _count_lost_free(self, first: int, end: int) -> int:
        """But for those that are being lost right now, and are not counted yet."""
        with self._claimed(first, end) as claims:
            return sum(self._count_lost(claim.first, claim.end, free_counts=False) for claim in claims)

    def _pieces_of_free(self) -> Iterator[tuple[int, int]]:
        return (piece for run in self.cut.free.set_runs() for piece in _pieces(*run))

    def give_up(self) -> None:
        """It holds nothing for readers any more, so all of it is released. SnapshotEnded, OSError: as for others."""
        with self._turn, self.cut.held():
            everything = 0, self.cut.released.block_count
            try:
                self._release(*everything, self._check)
            finally:
                self._releases.put(ReleasedRange(self.cut.generation, *everything))

    def release(self, first: int, end: int) -> int:
        """The imager has these blocks: nothing is owed for them, and their copies will be given back.

        Of an older cut they only become unreadable: what is settled in that never changes any more. Returns how many
        were not released before. SnapshotEnded: there is no such snapshot any more.
        """
        with self._turn, self.cut.held():
            try:
                return self._release(first, end, self._check_shown)
            finally:
                # Also of a part: what is released is never read again.
                self._releases.put(ReleasedRange(self.cut.generation, first, end))

    def _release(self, first: int, end: int, check: Callable[[], None]) -> int:
        cut, count, parts = self.cut, 0, Runs()
        for low, high in _pieces(first, end):
            check()
            # Released before settled: a reader that finds a block settled looks at this last.
            count += self._note_released(low, high, parts)
        if self._is_power:
            # A power loss must not make a block look owed that was overwritten without being preserved.
            self._store.files.sync(cut.released.file.fd)
        for part in parts:
            check()
            self._settle_unneeded(*part, cut.released)
        return count

    def _note_released(self, first: int, end: int, parts: Runs) -> int:
        """How many were not released before. `parts` gets the runs that now are."""
        released, numbers, count, excused = self.cut.released, self._numbers, 0, 0
        with self._claimed(first, end) as claims:
            for claim in claims:
                part = claim.first, claim.end
                # Before the turn at counting, which a merge waits for: this may wait for the disk.
                released.allocate(*part)
                with self.cut.counting:
                    lost, before = self._count_lost(*part), released.count_set(*part)
                    released.set_range(*part)
                    now = claim.end - claim.first - before
                    with self._lock:
                        numbers[CutCounter.RELEASED_BLOCKS] += now
                        numbers.put(CutCounter.EXCUSED_BLOCKS, numbers[CutCounter.EXCUSED_BLOCKS] + lost)
                parts.append(part)
                count, excused = count + now, excused + lost
        if excused:
            numbers.keep()
        return count

    def _claimed(self, first: int, end: int) -> AbstractContextManager[list[Claim]]:
        if self._claims is None or self._store.cut is not self.cut:
            return nullcontext([Claim(first, end)])
        return _Claimed(self._lock, self._claims, first, end)

    def _check_shown(self) -> None:
        facts = self._store.header.cut_of(self.cut.generation)
        if facts is None or facts.is_hidden:
            raise SnapshotEnded(f"cut {self.cut.generation} has ended")

    def _check(self) -> None:
        if self.cut.is_over:
            raise SnapshotEnded(f"cut {self.cut.generation} has ended")

    def _count_lost(self, first: int, end: int, *, free_counts: bool = True) -> int:
        """The lost ones among these blocks: nobody will ask for them any more, so they will be excused."""
        if not self._numbers.lost_blocks:
            return 0
        return count_lost(self.cut, first, end, free_counts=free_counts)

    def _settle_unneeded(self, first: int, end: int, reason: Bitmap) -> int:
        """Settle what readers of older cuts do not need; how many were owed. What is not served before, they have in
        this one: it is owed whatever this one's readers need."""
        if self._store.cut is not self.cut:
            return 0
        if not self._store.older:
            return self._settle(first, end, reason)
        cuts = self._store.hold_cuts()
        try:
            if cuts[-1] is not self.cut:
                return 0  # what an older cut owed, the later ones owe
            runs = served_before(self._store.header, cuts[:-1]).runs(first, end)
            return sum(self._settle(low, high, reason) for is_served, low, high in runs if is_served)
        finally:
            for cut in cuts:
                cut.let_go()

    def _settle(self, first: int, end: int, reason: Bitmap) -> int:
        """How many were owed."""
        settled, count = self.cut.settled, 0
        assert reason.all_set(first, end), f"blocks {first} to {end - 1} would be settled for no reason"
        with self._claimed(first, end) as claims:
            for claim in claims:
                with self.cut.counting:
                    before = settled.count_set(claim.first, claim.end)
                    settled.set_range(claim.first, claim.end)
                    now = claim.end - claim.first - before
                    with self._lock:
                        self._numbers[CutCounter.SETTLED_BLOCKS] += now
                count += now
        return count


class Reliefs:
    """The `Relief` of each cut of `store`: each has one owner of what is released in it. Thread-safe."""

    def __init__(self, store: Store, lock: threading.Lock, releases: ReleaseQueue, claims: Claims) -> None:
        self._store, self._lock, self._releases = store, lock, releases
        self._making = threading.Lock()
        self._known: dict[int, Relief] = {}
        self.begin_cut(store.cut, claims)

    def begin_cut(self, cut: Cut, claims: Claims) -> None:
        """It is the newest (lock held)."""
        self.newest = Relief(self._store, cut, self._lock, claims, self._releases)
        with self._making:
            self._known = {at: one for at, one in self._known.items() if one.cut.is_open}
            self._known[cut.generation] = self.newest

    def of(self, cut: Cut) -> Relief:
        """That of a cut, also of an older one. SnapshotEnded: it is over, or is just being made the newest."""
        with self._making:
            if cut.generation not in self._known:
                if not any(one is cut for one in self._store.older):
                    raise SnapshotEnded(f"cut {cut.generation} has ended")
                self._known[cut.generation] = Relief(self._store, cut, self._lock, None, self._releases)
            return self._known[cut.generation]


def _pieces(first: int, end: int) -> Iterator[tuple[int, int]]:
    """So few blocks at once that no write that meets them waits for long."""
    for low in range(first, end, _PIECE_BLOCKS):
        yield low, min(low + _PIECE_BLOCKS, end)
