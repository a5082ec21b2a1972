"""Preserving what a write is about to replace: claims on blocks, and the waiting for them and for room.

`try_preserve` does all of it at once, or nothing and says so; `preserve` waits. A block that somebody is about to
preserve or to settle is *claimed*: until the claim ends no other write touches it, and nobody else settles it. So
the lock is held for making claims, ending them and counting; whatever may wait for a disk comes between.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from typing import Final

from cow.disk.blocks import is_missed
from cow.disk.cut import Cut
from cow.disk.image import Image
from cow.disk.layout import Counter, CutCounter, Durability
from cow.disk.store import Store
from cow.errors import EngineClosed
from cow.live.durable import DurablePreserver
from cow.live.ending import Ending
from cow.live.losses import mark_lost
from cow.live.preserve import Claim, Preserver, StoreRefused, Ticket, WaitForCompactor
from cow.live.pressing import Pressing
from cow.live.room import Room
from cow.live.size import BufferSize
from cow.live.staged import StagedPreserver
from cow.live.traffic import Gate

# One request never takes more of the ring than this share, or the ring could not hold two at once.
_RING_SHARE = 4

# Places in the pages as plain numbers: to look a member of an enumeration up takes longer than to use it.
_PRESERVED_BLOCKS: Final = CutCounter.PRESERVED_BLOCKS.value
_SETTLED_BLOCKS: Final = CutCounter.SETTLED_BLOCKS.value
_CHANGED_BLOCKS: Final = CutCounter.CHANGED_BLOCKS.value
_LOST_BLOCKS: Final = CutCounter.LOST_BLOCKS.value
_COMPACTOR_IDLE: Final = Counter.COMPACTOR_IDLE.value


class Claims:
    """What of one cut is being preserved or settled right now (the engine's lock is held for every method)."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._claims: list[Claim] = []

    def __bool__(self) -> bool:
        return bool(self._claims)

    def add(self, claim: Claim) -> None:
        """From here on they are nobody else's."""
        self._claims.append(claim)

    def remove(self, *claims: Claim) -> None:
        """They end."""
        for claim in claims:
            self._claims.remove(claim)
        self._gate.tell()

    def touch(self, first: int, end: int) -> bool:
        """Whether one of these blocks is claimed."""
        if not self._claims:
            return False
        return any(claim.first < end and first < claim.end for claim in self._claims)

    def take(self, first: int, end: int) -> list[Claim]:
        """Claim the parts of the run that nobody claims (lock held)."""
        taken = [Claim(*part) for part in self._unclaimed(first, end)] if self._claims else [Claim(first, end)]
        self._claims += taken
        return taken

    def _unclaimed(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        for claim in sorted(self._claims, key=lambda claim: claim.first):
            if claim.first < end and first < claim.end:
                if first < claim.first:
                    yield first, claim.first
                first = max(first, claim.end)
        if first < end:
            yield first, end


class Claiming:
    """Preserves for the present cut of `store`. `lock` is the engine's, `changed` its condition.

    It owns the claims, the preserver in use and whether the ring rests; it sets the bits, makes the index entries and
    counts the blocks of what is preserved. Its caller has passed `gate` and looked whether anything is owed; he
    writes the image after this has returned, and before he leaves the gate.
    """

    def __init__(
        self,
        store: Store,
        image: Image,
        lock: threading.Lock,
        changed: threading.Condition,
        gate: Gate,
        room: Room,
        pressing: Pressing,
        ending: Ending,
        size: BufferSize,
        wake_compactor: Callable[[], None],
    ) -> None:
        self._store, self._image, self._staging, self._control = store, image, store.staging, store.control
        self._lock, self._changed, self._gate = lock, changed, gate
        self._room, self._pressing, self._ending = room, pressing, ending
        self._size, self._wake_compactor = size, wake_compactor
        self._is_power = store.header.durability is Durability.POWER
        self._writes_numbers = store.control.file.is_written
        self._closed = self._ring_rests = False
        self.claims = Claims(gate)
        self.max_blocks = max(1, store.staging.slots // _RING_SHARE)
        self._cut, self._numbers, self._preserver = store.cut, store.cut.numbers, self.new_preserver(store.cut)

    # --- called without the lock -----------------------------------------------------------------------------

    def try_preserve(self, first: int, end: int) -> bool:
        """Preserve what is owed of these blocks if that needs no wait; else nothing is done."""
        # Who waits for room comes first: else a large write might never find enough of it.
        if self._is_power or self._pressing.threads or end - first > self.max_blocks:
            return False
        try:
            if not self._preserver.allocate(first, end, may_wait=False):
                return False
            with self._lock:
                ticket = self._begin(first, end)
            return ticket is not None and self._carry_out(ticket, self._preserver.try_fill)
        except (OSError, StoreRefused, WaitForCompactor):
            # The thread that tries again meets the same and reports it.
            return False

    def preserve(self, first: int, end: int) -> None:
        """The same for no more than `max_blocks`, with all waiting.

        OSError: the image cannot be read. BufferFull and EngineClosed: as for `LiveEngine.write`.
        """
        try:
            while True:
                news = self._pressing.news
                try:
                    if self._is_done(first, end):
                        return
                except StoreRefused as refused:
                    self._room.give_way(refused.errno, news)
                except WaitForCompactor:
                    self._room.await_compactor(news)
        finally:
            self._pressing.stop()

    def empty_ring(self) -> bool:
        """Give the ring's space back if no slot is in use; False while one is. OSError: its filesystem takes none."""
        staging = self._staging
        if not self._size.ring_is_empty:
            return False
        if not staging.takes_space:
            return True
        with self._lock:
            if not self._size.ring_is_empty:
                return False
            self._ring_rests = True
        try:
            staging.give_back()
        finally:
            with self._changed:
                self._ring_rests = False
                self._gate.tell()
        staging.warm()
        return True

    def new_preserver(self, cut: Cut) -> Preserver:
        """For `begin_cut`. OSError: the store's."""
        kind = DurablePreserver if self._is_power else StagedPreserver
        return kind(self._store, cut, self._image, self._size, self._room.may_lose)

    def discard(self) -> None:
        """The snapshot is over: hold nothing of the side buffer open."""
        self._preserver.discard()

    def close(self) -> None:
        """Writes that wait fail with EngineClosed; returns when nobody preserves any more."""
        with self._changed:
            self._closed = True
            self._gate.tell()
            while self.claims:
                self._gate.wait()
        self._preserver.close()

    # --- called with the lock held ---------------------------------------------------------------------------

    def begin_cut(self, cut: Cut, preserver: Preserver) -> Preserver:
        """`cut` is the present one, no write is under way. Returns the preserver before, which is to be closed."""
        ended = self._preserver
        # What still settles blocks of the cut before concerns nobody here.
        self.claims = Claims(self._gate)
        self._cut, self._numbers, self._preserver = cut, cut.numbers, preserver
        return ended

    # --- inside ----------------------------------------------------------------------------------------------

    def _begin(self, first: int, end: int) -> Ticket | None:
        """Claim the blocks (lock held); None when they or the ring are somebody else's just now.

        StoreRefused, WaitForCompactor: there is no room.
        """
        if self._ring_rests or self._ending.is_under_way or self.claims.touch(first, end):
            return None
        ticket = Ticket(first, end, self._cut.settled.clear_runs(first, end))
        if ticket.runs and not self._preserver.begin(ticket):
            return None
        self.claims.add(ticket)
        return ticket

    def _is_done(self, first: int, end: int) -> bool:
        """Try once; False after having waited a little for what stood in the way. StoreRefused, WaitForCompactor:
        there is no room. OSError: the image's."""
        if not self._numbers.is_kept:
            return True
        news = self._gate.news
        self._preserver.allocate(first, end, may_wait=True)
        with self._changed:
            if self._closed:
                raise EngineClosed("the live view is being closed")
            ticket = self._begin(first, end)
            if ticket is None:
                self._gate.wait_outside(lambda: self._gate.news != news)
                return False
        return self._carry_out(ticket, self._preserver.fill)

    def _carry_out(self, ticket: Ticket, fill: Callable[[Ticket], bool]) -> bool:
        """Steps 1 to 3 of a write, for claimed blocks; False when `fill` says so, and nothing is done then.

        StoreRefused: where maps are written, the disk may refuse at the last moment; what is settled by then has its
        copy.
        """
        if self._writes_numbers:
            self._control.keep()
        is_filled = is_noted = False
        try:
            is_filled = not ticket.runs or fill(ticket)
            if is_filled:
                self._preserver.touch(ticket.first, ticket.end)
                self._note(ticket)
                is_noted = True
        finally:
            self._end_claim(ticket, is_filled=is_filled)
            # Also when the disk refused the rest: what is settled is.
            if ticket.settled:
                self._room.note_preserved(ticket)
                if self._control[_COMPACTOR_IDLE]:
                    self._wake_compactor()
        return is_noted

    def _note(self, ticket: Ticket) -> None:
        """Steps 2 and 3: everything stored into here was allocated."""
        cut, first, end = self._cut, ticket.first, ticket.end
        try:
            if ticket.runs:
                self._preserver.publish(ticket)
                if ticket.lost:
                    mark_lost(cut, ticket.lost)
                # Each block of a run has its slot in the ring; records and losses come one by one.
                if self._is_power or ticket.lost:
                    has_all = all(cut.index.has_all(*run) for run in ticket.runs)
                    assert has_all or not self._store.is_whole, "a block would be settled without a copy"
                for low, high in ticket.runs:
                    cut.settled.set_allocated(low, high)
                    ticket.settled += high - low
            unchanged = end - first - cut.changed.count_set(first, end)
            if unchanged:
                cut.changed.set_allocated(first, end)
                ticket.unchanged = unchanged
        except OSError as error:
            raise StoreRefused(error.errno or errno.EIO) from error

    def _end_claim(self, ticket: Ticket, *, is_filled: bool) -> None:
        numbers, missed = self._numbers, 0
        with self._lock:
            if ticket.runs:
                if is_filled:
                    self._preserver.commit(ticket)
                else:
                    self._preserver.abandon(ticket)
            if ticket.settled:
                numbers[_PRESERVED_BLOCKS] += ticket.settled
                numbers[_SETTLED_BLOCKS] += ticket.settled
                if self._is_power:
                    # What was promised raw takes less now.
                    self._pressing.note()
            if ticket.unchanged:
                numbers[_CHANGED_BLOCKS] += ticket.unchanged
            if ticket.lost:
                # Now, and not before: what becomes free or released from here on is excused by who says so.
                missed = sum(is_missed(self._cut, block_no) for run in ticket.lost for block_no in range(*run))
                numbers.put(_LOST_BLOCKS, numbers[_LOST_BLOCKS] + missed)
            self.claims.remove(ticket)
        if self._writes_numbers:
            self._control.keep()
        if missed:
            numbers.keep()
