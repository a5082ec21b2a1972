"""Room in the side buffer: who waits for more, and who gives way when there is none."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from cow.disk.cut import Cut
from cow.disk.files import Files
from cow.disk.layout import KEPT_STATES, Counter, CutCounter, State
from cow.disk.store import Store
from cow.errors import BufferFull, EngineClosed
from cow.live.overflow import Event, EventKind, OverflowPolicy
from cow.live.preserve import Ticket
from cow.live.size import BufferSize
from cow.live.traffic import Gate

_WARN_PERCENT = (80, 90, 95)
_NO_CUT: Final = -1
# To look a member of an enumeration up takes longer than to use it.
_LIMIT_BYTES: Final = Counter.LIMIT_BYTES.value


class Room:
    """For every cut of `store`. `changed` is the condition of the engine's lock, `discard` its preserver's.

    The snapshot ends while nobody holds the lock, for the disk has to be told: `is_ending` until that is done. The
    blocks that are still owed then are not written before.
    """

    def __init__(
        self,
        store: Store,
        policy: OverflowPolicy,
        size: BufferSize,
        changed: threading.Condition,
        gate: Gate,
        discard: Callable[[], None],
        wake_compactor: Callable[[], None],
        on_event: Callable[[Event], None],
    ) -> None:
        self._store, self._control, self._policy, self._size = store, store.control, policy, size
        self._changed, self._gate = changed, gate
        self._discard, self._wake_compactor, self._on_event = discard, wake_compactor, on_event
        self._warned_percent = 0
        self._told_waiting = self._compactor_is_gone = self._compactor_is_missing = False
        # The cut that was found to be cut short.
        self._short_generation = _NO_CUT
        self.is_ending = False
        self._untold: deque[Event] = deque()
        # The threads whose writes wait for room.
        self.pressing: set[int] = set()

    # --- called by the owner ---------------------------------------------------------------------------------

    def look_again(self) -> None:
        """The compactor freed slots: writes that wait try again."""
        with self._changed:
            self._gate.tell()

    def set_limit(self, limit_bytes: int) -> None:
        """A new limit for the side buffer, 0 for none; writes that wait try again."""
        self._control[Counter.LIMIT_BYTES] = limit_bytes
        with self._changed:
            self._warned_percent = 0
            self._told_waiting = False
            self._gate.tell()

    def stop_waiting(self, *, compactor_is_gone: bool = False) -> None:
        """From here on a full side buffer ends the snapshot: live data must get out before the end.

        `compactor_is_gone`: a write that only it could make room for fails with EngineClosed.
        """
        with self._changed:
            self._policy = OverflowPolicy.BREAK_SNAPSHOT
            self._compactor_is_gone |= compactor_is_gone
            self._gate.tell()

    def note_compactor(self, *, is_missing: bool) -> None:
        """While it is missing nobody makes room: a full ring is a full side buffer, and the policy decides."""
        with self._changed:
            self._compactor_is_missing = is_missing
            self._gate.tell()

    def may_lose(self) -> bool:
        """Whether an old block that the image cannot give is lost; else the write that wants to replace it fails."""
        return self._policy is not OverflowPolicy.BREAK_WRITE

    # --- called by who preserves -----------------------------------------------------------------------------

    def begin_cut(self) -> None:
        """The side buffer is empty again (lock held)."""
        self._warned_percent, self._told_waiting = 0, False

    def note_preserved(self, ticket: Ticket) -> None:
        """Its blocks are in the side buffer, but for those that the image could not give: tell the owner of these
        before the image is written, and when the next share of the limit has been reached."""
        for first, end in ticket.lost:
            where = self._store.geometry.extent(first, end)
            self._untold.append(Event(EventKind.LOST, ticket.lost_errno, *where))
        if self._control[_LIMIT_BYTES]:
            self._look_at_limit()
        self._tell()

    def _look_at_limit(self) -> None:
        percent = self._size.limit_percent()
        reached = max((step for step in _WARN_PERCENT if percent >= step), default=0)
        if reached <= self._warned_percent:
            return
        with self._changed:
            if reached > self._warned_percent:
                self._warned_percent = reached
                self._untold.append(Event(EventKind.BUFFER_FILLING, reached))

    def await_compactor(self, news: int) -> None:
        """There is no room until the compactor has made some: wait a little. `news`: see `Gate.wait_outside`.

        EngineClosed: there is no compactor any more. BufferFull: it is missing, and the policy is `break-write`.
        """
        if self.look_at_store():
            return
        if self._compactor_is_missing and not self._compactor_is_gone:
            self.give_way(errno.ENOSPC, news)
        else:
            self._wait(news)

    def give_way(self, code: int, news: int) -> None:
        """The side buffer takes no more: end the snapshot, fail the write (BufferFull), or wait a little."""
        if self.look_at_store():
            return
        if self._policy is OverflowPolicy.BREAK_WRITE:
            raise BufferFull(code)
        if self._policy is OverflowPolicy.BREAK_SNAPSHOT:
            self._break_snapshot(code)
            return
        with self._changed:
            if not self._told_waiting:
                self._told_waiting = True
                self._untold.append(Event(EventKind.WAITING, code))
        self._tell()
        self._wait(news)

    def _wait(self, news: int) -> None:
        """This thread waits for room; the compactor hurries and tells of each slot until nobody does."""
        if self._compactor_is_gone:
            raise EngineClosed("nobody makes room any more") from None
        with self._changed:
            self.pressing.add(threading.get_ident())
            self._control[Counter.PRESSED] = 1
        self._wake_compactor()
        with self._changed:
            self._gate.wait_outside(news)

    def stop_pressing(self) -> None:
        """This thread waits no more."""
        if threading.get_ident() in self.pressing:
            with self._changed:
                self.pressing.remove(threading.get_ident())
                if not self.pressing:
                    self._control[Counter.PRESSED] = 0

    def _tell(self) -> None:
        while self._untold:
            with contextlib.suppress(IndexError):
                self._on_event(self._untold.popleft())

    # --- the end of a snapshot -------------------------------------------------------------------------------

    def look_at_store(self) -> bool:
        """Whether files of the store were cut short: the snapshot is over then, since nothing in it can be proven
        right.

        Before the image is written: readers look at this last. The numbers may be in memory of this process alone by
        now, so it is said where all look first of all.
        """
        if self._is_cut_short or self._store.is_whole:
            return self._is_cut_short
        if self._begin_end():
            try:
                self._note_cut_short()
            finally:
                self._finish_end()
        return True

    @property
    def _is_cut_short(self) -> bool:
        return self._short_generation == self._store.cut.generation

    def _note_cut_short(self) -> None:
        # The same throughout, also while another one is being made the present.
        with self._all_held() as cuts:
            if self._short_generation == cuts[-1].generation:
                return
            # Those before it read through it.
            is_on_disk = self._end_all(cuts, Cut.note_unreadable)
            self._on_event(Event(EventKind.CUT_SHORT, 0, is_on_disk=is_on_disk))
            for cut in cuts:
                numbers = cut.numbers
                if numbers[CutCounter.STATE] != State.OVERFLOWED:
                    numbers[CutCounter.STATE] = State.DAMAGED
                numbers[CutCounter.UNREADABLE] = 1
            self._short_generation = cuts[-1].generation

    def _break_snapshot(self, code: int) -> None:
        if not self._begin_end():
            return
        try:
            with self._all_held() as cuts:
                if cuts[-1].numbers[CutCounter.STATE] not in KEPT_STATES:
                    return
                for cut in cuts:
                    cut.numbers[CutCounter.OVERFLOW_ERRNO] = code
                # Before the first block is overwritten that nobody preserved: readers look at this last.
                is_on_disk = self._end_all(cuts, Cut.note_overflow)
                self._on_event(Event(EventKind.OVERFLOW, code, is_on_disk=is_on_disk))
                # From here on such blocks are written.
                for cut in cuts:
                    cut.numbers[CutCounter.STATE] = State.OVERFLOWED
            with contextlib.suppress(OSError):
                self._discard()
        finally:
            self._finish_end()
        self._wake_compactor()

    def _begin_end(self) -> bool:
        """False: somebody else was ending it, and has done so."""
        with self._changed:
            if not self.is_ending:
                self.is_ending = True
                return True
            while self.is_ending:
                self._gate.wait()
            return False

    def _finish_end(self) -> None:
        with self._changed:
            self.is_ending = False
            self._gate.tell()

    @contextlib.contextmanager
    def _all_held(self) -> Iterator[list[Cut]]:
        """All cuts, oldest first: what the newest loses, all of them lose."""
        cuts = self._store.hold_cuts()
        try:
            yield cuts
        finally:
            for cut in cuts:
                cut.let_go()

    def _end_all(self, cuts: Sequence[Cut], note: Callable[[Cut, Files], None]) -> bool:
        """Their readers fail from here on. Whether that could be told to the disk, too."""
        is_on_disk = True
        for cut in cuts:
            self._store.end_cut(cut.generation)
            try:
                note(cut, self._store.files)
            except OSError:
                is_on_disk = False
        return is_on_disk
