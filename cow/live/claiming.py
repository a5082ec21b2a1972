"""Preserving what a write is about to replace: claims on blocks, and the waiting for them and for room.

`try_preserve` does all of it at once, or nothing and says so; `preserve` waits. A block that a waiting thread is
about to preserve is *claimed*: until the claim ends no other write touches it, and nobody settles it.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from typing import Final

from cow.disk.blocks import count_lost
from cow.disk.cut import Cut
from cow.disk.image import Image
from cow.disk.layout import Counter, CutCounter, Durability
from cow.disk.store import Store
from cow.errors import EngineClosed
from cow.live.durable import DurablePreserver
from cow.live.losses import mark_lost
from cow.live.preserve import Preserver, StoreRefused, Ticket, WaitForCompactor, allocate_changed
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
_COMPACTOR_IDLE: Final = Counter.COMPACTOR_IDLE.value
_LIMIT_BYTES: Final = Counter.LIMIT_BYTES.value


class Claims:
    """Tickets of writes that preserve their blocks in a thread right now (lock held for every method)."""

    def __init__(self) -> None:
        self._tickets: list[Ticket] = []

    def __bool__(self) -> bool:
        return bool(self._tickets)

    def add(self, ticket: Ticket) -> None:
        self._tickets.append(ticket)

    def remove(self, ticket: Ticket) -> None:
        self._tickets.remove(ticket)

    def touch(self, first: int, end: int) -> bool:
        """Whether one of these blocks is claimed."""
        if not self._tickets:
            return False
        return any(ticket.first < end and first < ticket.end for ticket in self._tickets)

    def unclaimed(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """The parts of the run that nobody claims."""
        for ticket in sorted(self._tickets, key=lambda ticket: ticket.first):
            if ticket.first < end and first < ticket.end:
                if first < ticket.first:
                    yield first, ticket.first
                first = max(first, ticket.end)
        if first < end:
            yield first, end


class Claiming:
    """Preserves for the present cut of `store`. `lock` is the engine's, `changed` its condition.

    It owns the claims, the preserver in use and whether the ring rests; with the lock held it sets the bits, makes
    the index entries and counts the blocks of what is preserved. Its caller has passed `gate` and looked whether
    anything is owed; he writes the image after this has returned, and before he leaves the gate.
    """

    def __init__(
        self,
        store: Store,
        image: Image,
        lock: threading.Lock,
        changed: threading.Condition,
        gate: Gate,
        room: Room,
        size: BufferSize,
        wake_compactor: Callable[[], None],
    ) -> None:
        self._store, self._image, self._staging, self._control = store, image, store.staging, store.control
        self._lock, self._changed, self._gate = lock, changed, gate
        self._room, self._size, self._wake_compactor = room, size, wake_compactor
        self._is_power = store.header.durability is Durability.POWER
        self._closed = self._ring_rests = False
        self.claims = Claims()
        self.max_blocks = max(1, store.staging.slots // _RING_SHARE)
        self._cut, self._numbers, self._preserver = store.cut, store.cut.numbers, self.new_preserver(store.cut)

    # --- called without the lock -----------------------------------------------------------------------------

    def try_preserve(self, first: int, end: int) -> bool:
        """Preserve what is owed of these blocks if that needs no wait; else nothing is done."""
        # Who waits for room comes first: else a large write might never find enough of it.
        if self._is_power or self._room.pressing or end - first > self.max_blocks:
            return False
        with self._lock:
            if self._ring_rests or self.claims.touch(first, end):
                return False
            ticket = Ticket(first, end, self._cut.settled.clear_runs(first, end))
            try:
                self._begin(ticket)
            except (WaitForCompactor, StoreRefused):
                return False
            if ticket.runs and not self._try_fill(ticket):
                self._preserver.abandon(ticket)
                return False
            try:
                self._publish(ticket)
            except OSError:
                return False  # the thread that tries again meets it too, and there it is an overflow
        return True

    def preserve(self, first: int, end: int) -> None:
        """The same for no more than `max_blocks`, with all waiting.

        OSError: the image cannot be read. BufferFull and EngineClosed: as for `LiveEngine.write`.
        """
        try:
            self._preserve_in_turn(first, end)
        finally:
            self._room.stop_pressing()

    def empty_ring(self) -> bool:
        """Give the ring's space back if no slot is in use; False while one is. OSError: its filesystem takes none."""
        staging = self._staging
        with self._lock:
            if not self._size.ring_is_empty:
                return False
            if not staging.takes_space:
                return True
            self._ring_rests = True
        try:
            staging.give_back()
        finally:
            with self._changed:
                self._ring_rests = False
                self._changed.notify_all()
        staging.warm()
        return True

    def new_preserver(self, cut: Cut) -> Preserver:
        """For `begin_cut`. OSError: the store's."""
        kind = DurablePreserver if self._is_power else StagedPreserver
        return kind(self._store, cut, self._image, self._size, self._room.may_lose)

    def close(self) -> None:
        """Writes that wait fail with EngineClosed; returns when nobody preserves any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while self.claims:
                self._changed.wait()
        self._preserver.close()

    # --- called with the lock held ---------------------------------------------------------------------------

    def begin_cut(self, cut: Cut, preserver: Preserver) -> Preserver:
        """`cut` is the present one, no write is under way. Returns the preserver before, which is to be closed."""
        ended = self._preserver
        self._cut, self._numbers, self._preserver = cut, cut.numbers, preserver
        return ended

    def discard(self) -> None:
        """The snapshot is over: hold nothing of the side buffer open."""
        self._preserver.discard()

    # --- inside ----------------------------------------------------------------------------------------------

    def _try_fill(self, ticket: Ticket) -> bool:
        try:
            return self._preserver.try_fill(ticket)
        except OSError:
            # The thread that tries again meets the same error and reports it.
            return False

    def _begin(self, ticket: Ticket) -> None:
        if ticket.runs:
            self._preserver.begin(ticket)
        else:
            allocate_changed(self._cut, ticket)

    def _preserve_in_turn(self, first: int, end: int) -> None:
        while (ticket := self._claim(first, end)) is not None:
            filled, refusal_errno = False, 0
            try:
                if ticket.runs:
                    self._preserver.fill(ticket)
                filled = True
            except StoreRefused as refused:
                refusal_errno = refused.errno
            finally:
                refusal_errno = self._end_claim(ticket, filled) or refusal_errno
            if not refusal_errno:
                return
            with self._changed:
                self._room.give_way(refusal_errno)

    def _claim(self, first: int, end: int) -> Ticket | None:
        """Wait until these blocks are nobody else's and there is room; None when nothing need be preserved."""
        with self._changed:
            while True:
                if self._closed:
                    raise EngineClosed("the live view is being closed")
                if not self._numbers.is_kept:
                    return None
                if not self._ring_rests and not self.claims.touch(first, end):
                    ticket = Ticket(first, end, self._cut.settled.clear_runs(first, end))
                    try:
                        self._begin(ticket)
                    except StoreRefused as refused:
                        self._room.give_way(refused.errno)
                        continue
                    except WaitForCompactor:
                        self._room.await_compactor()
                    else:
                        self.claims.add(ticket)
                        return ticket
                self._gate.wait_outside()

    def _end_claim(self, ticket: Ticket, filled: bool) -> int:
        """0, or the errno that the store refused with at the last moment."""
        with self._changed:
            self.claims.remove(ticket)
            try:
                if filled:
                    self._publish(ticket)
                elif ticket.runs:
                    self._preserver.abandon(ticket)
            except OSError as error:
                return error.errno or errno.EIO
            finally:
                self._changed.notify_all()
        return 0

    def _publish(self, ticket: Ticket) -> None:
        """Steps 2 and 3 of a write; everything stored into here was allocated by `_begin`.

        OSError: where maps are written, the disk may still refuse. What is settled by then has its copy.
        """
        control, cut, numbers = self._control, self._cut, self._numbers
        if ticket.runs:
            self._preserver.publish(ticket)
            if ticket.lost:
                mark_lost(cut, ticket.lost)
            # Each block of a run has its slot in the ring; records and losses come one by one.
            if self._is_power or ticket.lost:
                has_all = all(cut.index.has_all(*run) for run in ticket.runs)
                assert has_all or not self._store.is_whole, "a block would be settled without a copy"
            for first, end in ticket.runs:
                cut.settled.set_allocated(first, end)
            count = ticket.count
            numbers[_PRESERVED_BLOCKS] += count
            numbers[_SETTLED_BLOCKS] += count
            if ticket.lost:
                self._count_lost(ticket)
            if control[_COMPACTOR_IDLE]:
                self._wake_compactor()
            if control[_LIMIT_BYTES]:
                self._room.warn()
        first, end = ticket.first, ticket.end
        unchanged = end - first - cut.changed.count_set(first, end)
        if unchanged:
            cut.changed.set_allocated(first, end)
            numbers[_CHANGED_BLOCKS] += unchanged

    def _count_lost(self, ticket: Ticket) -> None:
        # Not those that became free or were released while they were claimed.
        self._numbers[CutCounter.LOST_BLOCKS] += sum(count_lost(self._cut, *run) for run in ticket.lost)
        self._room.tell_lost(ticket.lost_errno, ticket.lost)
