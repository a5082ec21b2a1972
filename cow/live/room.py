"""Room in the side buffer: who waits for more, and who gives way when there is none."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Sequence

from cow.disk.files import Files
from cow.disk.layout import KEPT_STATES, Counter, CutCounter, State
from cow.disk.store import Store
from cow.errors import BufferFull, EngineClosed
from cow.live.overflow import Event, EventKind, OverflowPolicy
from cow.live.size import BufferSize
from cow.live.traffic import Gate

_WARN_PERCENT = (80, 90, 95)


class Room:
    """For every cut of `store`. `changed` is the condition of the engine's lock, `discard` its preserver's."""

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
        self._is_cut_short = False
        # The threads whose writes wait for room.
        self.pressing: set[int] = set()

    # --- called by the owner, without the lock ---------------------------------------------------------------

    def look_again(self) -> None:
        """The compactor freed slots: writes that wait try again."""
        with self._changed:
            self._changed.notify_all()

    def set_limit(self, limit_bytes: int) -> None:
        """A new limit for the side buffer, 0 for none; writes that wait try again."""
        with self._changed:
            self._control[Counter.LIMIT_BYTES] = limit_bytes
            self._warned_percent = 0
            self._told_waiting = False
            self._changed.notify_all()

    def stop_waiting(self, *, compactor_is_gone: bool = False) -> None:
        """From here on a full side buffer ends the snapshot: live data must get out before the end.

        `compactor_is_gone`: a write that only it could make room for fails with EngineClosed.
        """
        with self._changed:
            self._policy = OverflowPolicy.BREAK_SNAPSHOT
            self._compactor_is_gone |= compactor_is_gone
            self._changed.notify_all()

    def note_compactor(self, *, is_missing: bool) -> None:
        """While it is missing nobody makes room: a full ring is a full side buffer, and the policy decides."""
        with self._changed:
            self._compactor_is_missing = is_missing
            self._changed.notify_all()

    def may_lose(self) -> bool:
        """Whether an old block that the image cannot give is lost; else the write that wants to replace it fails."""
        return self._policy is not OverflowPolicy.BREAK_WRITE

    # --- called by the engine with the lock held -------------------------------------------------------------

    def begin_cut(self) -> None:
        """The side buffer is empty again."""
        self._warned_percent, self._told_waiting, self._is_cut_short = 0, False, False

    def warn(self) -> None:
        """Tell the owner when the next share of the limit has been reached."""
        percent = self._size.limit_percent()
        reached = max((step for step in _WARN_PERCENT if percent >= step), default=0)
        if reached > self._warned_percent:
            self._warned_percent = reached
            self._on_event(Event(EventKind.BUFFER_FILLING, reached))

    def look_at_store(self) -> None:
        """End the snapshot if files of the store were cut short: nothing in it can be proven right then.

        Before the image is written: readers look at this last. The numbers may be in memory of this process alone by
        now, so it is said where all look first of all.
        """
        if self._is_cut_short or self._store.is_whole:
            return
        self._is_cut_short = True
        # The same throughout, also while another one is being made the present.
        cut = self._store.cut
        numbers = cut.numbers
        self._store.end_cut(cut.generation)
        if numbers[CutCounter.STATE] != State.OVERFLOWED:
            numbers[CutCounter.STATE] = State.DAMAGED
        numbers[CutCounter.UNREADABLE] = 1
        is_on_disk = self._note(cut.note_unreadable)
        self._changed.notify_all()
        self._on_event(Event(EventKind.CUT_SHORT, 0, is_on_disk=is_on_disk))

    def _note(self, note: Callable[[Files], None]) -> bool:
        """Whether the end of the snapshot could be told to the disk."""
        try:
            note(self._store.files)
        except OSError:
            return False
        return True

    def await_compactor(self) -> None:
        """There is no room until the compactor has made some."""
        self.look_at_store()
        if self._is_cut_short:
            return
        if self._compactor_is_missing and not self._compactor_is_gone:
            self.give_way(errno.ENOSPC)
        else:
            self.press()

    def tell_lost(self, code: int, lost: Sequence[tuple[int, int]]) -> None:
        """Blocks were lost, because the image could not give them (`code`)."""
        for first, end in lost:
            self._on_event(Event(EventKind.LOST, code, *self._store.geometry.extent(first, end)))

    def press(self) -> None:
        """This thread waits for room; the compactor hurries and tells of each slot until nobody does.

        EngineClosed: there is no compactor any more.
        """
        if self._compactor_is_gone:
            raise EngineClosed("nobody makes room any more") from None
        self.pressing.add(threading.get_ident())
        self._control[Counter.PRESSED] = 1
        self._wake_compactor()

    def stop_pressing(self) -> None:
        """This thread waits no more (lock not held)."""
        if threading.get_ident() in self.pressing:
            with self._changed:
                self.pressing.remove(threading.get_ident())
                if not self.pressing:
                    self._control[Counter.PRESSED] = 0

    def give_way(self, code: int) -> None:
        """The side buffer takes no more: end the snapshot, fail the write (BufferFull), or wait a little."""
        self.look_at_store()
        if self._is_cut_short:
            return
        if self._policy is OverflowPolicy.BREAK_WRITE:
            raise BufferFull(code)
        if self._policy is OverflowPolicy.BREAK_SNAPSHOT:
            self._break_snapshot(code)
            return
        if not self._told_waiting:
            self._told_waiting = True
            self._on_event(Event(EventKind.WAITING, code))
        self.press()
        self._gate.wait_outside()

    def _break_snapshot(self, code: int) -> None:
        cut = self._store.cut
        numbers = cut.numbers
        if numbers[CutCounter.STATE] not in KEPT_STATES:
            return
        numbers[CutCounter.OVERFLOW_ERRNO] = code
        # Before the first block is overwritten that nobody preserved: readers look at this last.
        self._store.end_cut(cut.generation)
        numbers[CutCounter.STATE] = State.OVERFLOWED
        is_on_disk = self._note(cut.note_overflow)
        with contextlib.suppress(OSError):
            self._discard()
        self._wake_compactor()
        self._changed.notify_all()
        self._on_event(Event(EventKind.OVERFLOW, code, is_on_disk=is_on_disk))
