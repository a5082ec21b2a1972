"""Preserving for `process`: raw into the memory-mapped staging ring (see `preserve`)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from cow.disk.cut import Cut
from cow.disk.image import Image
from cow.disk.layout import Counter, CutCounter
from cow.disk.store import Store
from cow.live.losses import read_or_lose, without
from cow.live.preserve import StoreRefused, Ticket, WaitForCompactor, allocate_maps, store_errors
from cow.live.size import BufferSize

# Places in the pages as plain numbers: to look a member of an enumeration up takes longer than to use it.
_RESERVED_SEQ: Final = Counter.RESERVED_SEQ.value
_COMMITTED_SEQ: Final = Counter.COMMITTED_SEQ.value
_FREED_SEQ: Final = Counter.FREED_SEQ.value
_FIRST_SEQ: Final = CutCounter.FIRST_SEQ.value
_STORE_ERRNO: Final = CutCounter.STORE_ERRNO.value


class StagedPreserver:
    """Into the ring. Slots are committed in order: those behind a ticket that is not filled yet must wait."""

    def __init__(self, store: Store, cut: Cut, image: Image, size: BufferSize, may_lose: Callable[[], bool]) -> None:
        self._cut, self._image, self._size, self._may_lose = cut, image, size, may_lose
        self._store, self._staging, self._control, self._geometry = (
            store,
            store.staging,
            store.control,
            store.geometry,
        )
        self._open: list[Ticket] = []

    def allocate(self, first: int, end: int, *, may_wait: bool) -> bool:
        owed = self._cut.settled.clear_runs(first, end)
        try:
            if owed and may_wait and not self._staging.is_allocated:
                self._staging.allocate()
            return allocate_maps(self._cut, first, end, owed, may_wait=may_wait)
        except OSError as error:
            raise StoreRefused(error.errno or errno.EIO) from error

    def begin(self, ticket: Ticket) -> bool:
        control, staging = self._control, self._staging
        count = ticket.count_owed()
        reserved = control[_RESERVED_SEQ]
        # Before the size: what the compactor frees in between makes room, so it is worth waiting for.
        waiting = reserved - control[_FREED_SEQ]
        # Else a slot could be filled that still is the only copy of a block.
        assert waiting >= 0, f"slots up to {reserved} are reserved, and {-waiting} more are free"
        failed = self._store_errno()
        if self._size.over_limit(count * self._geometry.block_bytes):
            if waiting and not failed:
                raise WaitForCompactor
            raise StoreRefused(failed or errno.ENOSPC)
        if waiting + count > staging.slots:
            if failed:
                raise StoreRefused(failed)
            raise WaitForCompactor
        if not staging.is_allocated:
            return False
        ticket.seq, ticket.count = reserved, count
        control.put(_RESERVED_SEQ, reserved + count)
        self._open.append(ticket)
        return True

    def _store_errno(self) -> int:
        """Why the compactor cannot move slots, of this cut or of one before it that has some still."""
        numbers = self._cut.numbers
        freed_seq = self._control[_FREED_SEQ]
        for older in reversed(self._store.older):
            # Not on to those that have none there: this is looked at in each write.
            if numbers[_STORE_ERRNO] or freed_seq >= numbers[_FIRST_SEQ]:
                break
            numbers = older.numbers
        return numbers[_STORE_ERRNO]

    def try_fill(self, ticket: Ticket) -> bool:
        seq = ticket.seq
        for first, end in ticket.runs:
            views = self._staging.views(seq, end - first)
            if not self._image.try_read_into(views, self._geometry.extent(first, end)[0]):
                return False
            self._staging.fill(self._cut.generation, seq, first, end)
            seq += end - first
        return True

    def fill(self, ticket: Ticket) -> bool:
        seq = ticket.seq
        for first, end in ticket.runs:
            self._fill_run(ticket, seq, first, end)
            seq += end - first
        return True

    def _fill_run(self, ticket: Ticket, seq: int, first: int, end: int) -> None:
        staging, base = self._staging, seq - first

        def slots(low: int, high: int) -> list[memoryview]:
            return staging.views(base + low, high - low)

        try:
            lost, code = read_or_lose(self._image, self._geometry, (first, end), slots, self._may_lose)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            raise StoreRefused(errno.EIO) from error
        with store_errors():
            for low, high in without((first, end), lost):
                staging.fill(self._cut.generation, base + low, low, high)
        for low, high in lost:
            staging.void(base + low, high - low)
        ticket.lose(lost, code)

    def touch(self, first: int, end: int) -> None:
        """No snapshot outlives a power loss."""

    def publish(self, ticket: Ticket) -> None:
        seq = ticket.seq
        for first, end in ticket.runs:
            self._cut.index.set_staged(first, end, seq)
            seq += end - first

    def abandon(self, ticket: Ticket) -> None:
        # Else slots would be taken back that the compactor may be moving.
        assert self._control[_COMMITTED_SEQ] <= ticket.seq, f"slot {ticket.seq} was committed before it was filled"
        if self._control[_RESERVED_SEQ] == ticket.seq + ticket.count:
            self._control.put(_RESERVED_SEQ, ticket.seq)
        self.commit(ticket)

    def commit(self, ticket: Ticket) -> None:
        # A slot that got no entry is dead, whatever is in it.
        self._open.remove(ticket)
        control = self._control
        control.put(_COMMITTED_SEQ, self._open[0].seq if self._open else control[_RESERVED_SEQ])

    def discard(self) -> None:
        """Nothing is open."""

    def close(self) -> None:
        """Nothing is open."""
