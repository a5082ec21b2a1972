"""Room in the side buffer: who waits for more, and who gives way when there is none."""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import dropwhile, takewhile
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

_WARN_PERCENT: Final = (80, 90, 95)
# Who has been warned is warned again when so much of the limit had become free below that step.
_CALM_PERCENT: Final = 5
_NO_CUT: Final = -1
# Who is told that a snapshot is over has let go of its files by then, if he is there at all.
_GIVE_BACK_S = 5.0
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
        tell_of_change: Callable[[], None],
    ) -> None:
        self._store, self._control, self._policy, self._size = store, store.control, policy, size
        self._changed, self._gate = changed, gate
        self._discard, self._wake_compactor, self._on_event = discard, wake_compactor, on_event
        self._tell_of_change = tell_of_change
        # When what the oldest snapshot had is back, the next one may give way.
        self._given_back_headers, self._given_back_until = 0, 0.0
        self._warned_percent, self.is_ending = 0, False
        self._told_waiting = self._compactor_is_gone = self._compactor_is_missing = False
        # The cut that was found to be cut short.
        self._short_generation = _NO_CUT
        # While nothing may end a snapshot, whatever the policy: without room a write fails.
        self.spares_snapshots = False
        # Counts what writes that wait for room may have waited for (lock held).
        self.news = 0
        # The threads whose writes wait for room.
        self.pressing: set[int] = set()

    # --- called by the owner ---------------------------------------------------------------------------------

    def look_again(self) -> None:
        """The compactor freed slots: writes that wait try again."""
        with self._changed:
            self._tell_waiting()

    def set_limit(self, limit_bytes: int) -> None:
        """A new limit for the side buffer, 0 for none; writes that wait try again."""
        is_new = self._control[Counter.LIMIT_BYTES] != limit_bytes
        self._control[Counter.LIMIT_BYTES] = limit_bytes
        with self._changed:
            if is_new:
                # Else whoever sets it whenever he is warned would be warned with every write.
                self._warned_percent = 0
                self._told_waiting = False
            self._tell_waiting()

    def stop_waiting(self, *, compactor_is_gone: bool = False) -> None:
        """From here on a full side buffer ends snapshots: live data must get out before the end.

        `compactor_is_gone`: a write that only it could make room for fails with EngineClosed.
        """
        with self._changed:
            if self._policy is not OverflowPolicy.BREAK_OLDEST:
                self._policy = OverflowPolicy.BREAK_SNAPSHOT
            self._compactor_is_gone |= compactor_is_gone
            self._tell_waiting()

    def note_compactor(self, *, is_missing: bool) -> None:
        """While it is missing nobody makes room: a full ring is a full side buffer, and the policy decides."""
        with self._changed:
            self._compactor_is_missing = is_missing
            self._tell_waiting()

    def _tell_waiting(self) -> None:
        self.news += 1
        self._gate.tell()

    def may_lose(self) -> bool:
        """Whether an old block that the image cannot give is lost; else the write that wants to replace it fails."""
        return self._policy is not OverflowPolicy.BREAK_WRITE

    # --- called by who preserves -----------------------------------------------------------------------------

    def begin_cut(self) -> None:
        """What it waited for may have ended with the one before (lock held); what that took, the next looks see."""
        self._told_waiting = False
        self.news += 1

    def note_preserved(self, ticket: Ticket) -> None:
        """Its blocks are in the side buffer, but for those that the image could not give: tell the owner of these
        before the image is written, and when the next share of the limit has been reached."""
        for first, end in ticket.lost:
            where = self._store.geometry.extent(first, end)
            self._on_event(Event(EventKind.LOST, ticket.lost_errno, *where))
        limit_bytes = self._control[_LIMIT_BYTES]
        if limit_bytes:
            self._look_at_limit(limit_bytes)

    def _look_at_limit(self, limit_bytes: int) -> None:
        with self._changed:
            percent = self._size.percent_of(limit_bytes)
        reached = _step_at(percent)
        if reached == self._warned_percent:
            return
        if reached < self._warned_percent:
            with self._changed:
                self._warned_percent = min(self._warned_percent, _step_at(percent + _CALM_PERCENT - 1))
            return
        with self._changed:
            is_new = reached > self._warned_percent and self._control[_LIMIT_BYTES] == limit_bytes
            if is_new:
                self._warned_percent = reached
        if is_new:
            self._on_event(Event(EventKind.BUFFER_FILLING, reached))

    def await_compactor(self, news: int) -> None:
        """There is no room until the compactor has made some: wait a little. `news`: what it was before the caller
        looked; if there was any since, he looks again at once.

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
        with self._changed:
            if self.news != news:
                return
            policy = OverflowPolicy.BREAK_WRITE if self.spares_snapshots else self._policy
            is_untold = policy is OverflowPolicy.WAIT and not self._told_waiting
            self._told_waiting |= is_untold
        if policy is OverflowPolicy.BREAK_WRITE:
            raise BufferFull(code)
        if policy is OverflowPolicy.BREAK_SNAPSHOT:
            self._break_snapshot(code, news)
            return
        if policy is OverflowPolicy.BREAK_OLDEST:
            self._break_oldest(code, news)
            return
        if is_untold:
            self._on_event(Event(EventKind.WAITING, code))
        self._wait(news)

    def _wait(self, news: int) -> None:
        """This thread waits for room; the compactor hurries and tells of each slot until nobody does."""
        with self._changed:
            if self.news != news:
                return
            if self._compactor_is_gone:
                raise EngineClosed("nobody makes room any more") from None
            self.pressing.add(threading.get_ident())
            self._control[Counter.PRESSED] = 1
        self._wake_compactor()
        with self._changed:
            self._gate.wait_outside(lambda: self.news != news)

    def stop_pressing(self) -> None:
        """This thread waits no more."""
        if threading.get_ident() in self.pressing:
            with self._changed:
                self.pressing.remove(threading.get_ident())
                if not self.pressing:
                    self._control[Counter.PRESSED] = 0

    # --- the end of a snapshot -------------------------------------------------------------------------------

    def look_at_store(self) -> bool:
        """Whether files of the store were cut short: the snapshot is over then, since nothing in it can be proven
        right.

        Before the image is written: readers look at this last. The numbers may be in memory of this process alone by
        now, so it is said where all look first of all.
        """
        # The same throughout, also while another one is being made the present.
        with self._all_held() as cuts:
            if self._short_generation == cuts[-1].generation:
                return True
            if self._store.can_hold_a_cut and cuts[-1].is_whole:
                return False
            if self._begin_end():
                try:
                    self._note_cut_short(cuts)
                finally:
                    self._finish_end()
        return True

    @property
    def is_cut_short(self) -> bool:
        """Whether that is known of the present cut."""
        return self._short_generation == self._store.cut.generation

    def _note_cut_short(self, cuts: Sequence[Cut]) -> None:
        newest = cuts[-1]
        if self._short_generation == newest.generation or newest.is_over:
            return
        is_on_disk = self._tell_end(cuts, Cut.note_unreadable)
        try:
            self._on_event(Event(EventKind.CUT_SHORT, 0, is_on_disk=is_on_disk))
        finally:
            self._end_with(cuts, State.DAMAGED)
            self._short_generation = newest.generation

    def _break_snapshot(self, code: int, news: int) -> None:
        if not self._begin_end(news):
            return
        try:
            with self._all_held() as cuts:
                if cuts[-1].numbers[CutCounter.STATE] not in KEPT_STATES:
                    return
                for cut in cuts:
                    cut.numbers[CutCounter.OVERFLOW_ERRNO] = code
                # Before the first block is overwritten that nobody preserved: readers look at this last.
                is_on_disk = self._tell_end(cuts, Cut.note_overflow)
                try:
                    self._on_event(Event(EventKind.OVERFLOW, code, is_on_disk=is_on_disk))
                finally:
                    self._end_with(cuts, State.OVERFLOWED)
            with contextlib.suppress(OSError):
                self._discard()
        finally:
            self._finish_end()
        self._wake_compactor()

    def _break_oldest(self, code: int, news: int) -> None:
        """The oldest snapshot ends, and the newest only when it is that; what the one before had comes back first."""
        if self._is_coming_back:
            self._wait(news)
            return
        if not self._begin_end(news):
            return
        with self._all_held() as cuts:
            shown = {one.generation for one in self._store.header.shown}
            # Hidden ones before the oldest snapshot hold nothing, so nothing comes back of them.
            *older, newest = (cut for cut in cuts if cut.numbers.is_kept or cut is cuts[-1])
            older = list(dropwhile(lambda cut: cut.generation not in shown, older))
            try:
                if older and newest.numbers.is_kept:
                    self._end_oldest(older, code)
            finally:
                self._finish_end()
        if not older:
            self._break_snapshot(code, self.news)

    def _end_oldest(self, older: Sequence[Cut], code: int) -> None:
        """And those after it that are going, and that only it still needed."""
        going = {one.generation for one in self._store.header.cuts if one.is_going}
        ending = [older[0], *takewhile(lambda cut: cut.generation in going, older[1:])]
        for cut in ending:
            cut.numbers[CutCounter.OVERFLOW_ERRNO] = code
        is_on_disk = self._tell_end(ending, Cut.note_overflow)
        self._end_with(ending, State.OVERFLOWED)
        self._tell_of_change()
        self._given_back_headers = self._control[Counter.HEADERS]
        self._given_back_until = time.monotonic() + _GIVE_BACK_S
        self._on_event(Event(EventKind.GAVE_WAY, code, is_on_disk=is_on_disk, generation=older[0].generation))

    @property
    def _is_coming_back(self) -> bool:
        """Whether the room that the last one had is still to come: its files may be open here and there."""
        is_awaited = not (self._compactor_is_gone or self._compactor_is_missing)
        done = min(self._control[Counter.FOLLOWED_HEADERS], self._control[Counter.SHOWN_HEADERS])
        return is_awaited and done < self._given_back_headers and time.monotonic() < self._given_back_until

    def end_unneeded(self) -> None:
        """Nobody reads the present cut, nor an older one any more: nothing is owed from here on."""
        while not self._begin_end():
            pass  # somebody else was just ending it, for a reason that counts no more
        try:
            cut = self._store.hold_cut()
            cut.numbers[CutCounter.STATE] = State.NONE
            cut.let_go()
            with contextlib.suppress(OSError):
                self._discard()
        finally:
            self._finish_end()
        self._wake_compactor()

    @contextlib.contextmanager
    def _all_held(self) -> Iterator[list[Cut]]:
        """All cuts, oldest first: what the newest loses, all of them lose."""
        cuts = self._store.hold_cuts()
        try:
            yield cuts
        finally:
            for cut in cuts:
                cut.let_go()

    def _tell_end(self, cuts: Sequence[Cut], note: Callable[[Cut, Files], None]) -> bool:
        """Their readers fail from here on. Whether that could be told to the disk, too."""
        is_on_disk = True
        for cut in cuts:
            self._store.end_cut(cut.generation)
            try:
                note(cut, self._store.files)
            except OSError:
                is_on_disk = False
        return is_on_disk

    def _end_with(self, cuts: Sequence[Cut], state: State) -> None:
        """From here on blocks that are owed are written."""
        for cut in cuts:
            numbers = cut.numbers
            with self._changed:
                if numbers[CutCounter.STATE] != State.OVERFLOWED:
                    numbers.put(CutCounter.STATE, state)
                if state is State.DAMAGED:
                    numbers.put(CutCounter.UNREADABLE, 1)
            numbers.keep()

    def _begin_end(self, news: int | None = None) -> bool:
        """False: somebody else was ending it, and has done so; or there was `news` that may make it needless."""
        with self._changed:
            if news is not None and self.news != news:
                return False
            if not self.is_ending:
                self.is_ending = True
                return True
            while self.is_ending:
                self._gate.wait()
            return False

    def _finish_end(self) -> None:
        with self._changed:
            self.is_ending = False
            self._tell_waiting()


def _step_at(percent: int) -> int:
    """The highest step that has been reached; 0: none."""
    return max((step for step in _WARN_PERCENT if percent >= step), default=0)
