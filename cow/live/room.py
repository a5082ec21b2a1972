"""Room in the side buffer: how much of it there is, who is warned, and who gives way when there is none."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from typing import Final

from cow.disk.layout import Counter
from cow.disk.store import Store
from cow.errors import BufferFull
from cow.live.ending import Ending
from cow.live.overflow import Event, EventKind, OverflowPolicy
from cow.live.preserve import Ticket
from cow.live.pressing import Pressing
from cow.live.size import BufferSize

_WARN_PERCENT: Final = (80, 90, 95)
# Who has been warned is warned again when so much of the limit had become free below that step.
_CALM_PERCENT: Final = 5
# To look a member of an enumeration up takes longer than to use it.
_LIMIT_BYTES: Final = Counter.LIMIT_BYTES.value


class Room:
    """For every cut of `store`: the limit, the policy, and who was warned. `changed` is the condition of the engine's
    lock."""

    def __init__(
        self,
        store: Store,
        policy: OverflowPolicy,
        size: BufferSize,
        changed: threading.Condition,
        pressing: Pressing,
        ending: Ending,
        on_event: Callable[[Event], None],
    ) -> None:
        self._store, self._control, self._policy, self._size = store, store.control, policy, size
        self._changed, self._pressing, self._ending, self._on_event = changed, pressing, ending, on_event
        self._warned_percent, self._told_waiting, self._compactor_is_missing = 0, False, False
        # While nothing may end a snapshot, whatever the policy: without room a write fails.
        self.spares_snapshots = False

    # --- called by the owner ---------------------------------------------------------------------------------

    def look_again(self) -> None:
        """The compactor freed slots: writes that wait try again."""
        with self._changed:
            self._pressing.tell()

    def set_limit(self, limit_bytes: int) -> None:
        """A new limit for the side buffer, 0 for none; writes that wait try again."""
        is_new = self._control[Counter.LIMIT_BYTES] != limit_bytes
        self._control[Counter.LIMIT_BYTES] = limit_bytes
        with self._changed:
            if is_new:
                # Else whoever sets it whenever he is warned would be warned with every write.
                self._warned_percent = 0
                self._told_waiting = False
            self._pressing.tell()

    def stop_waiting(self, *, compactor_is_gone: bool = False) -> None:
        """From here on a full side buffer ends snapshots: live data must get out before the end.

        `compactor_is_gone`: a write that only it could make room for fails with EngineClosed.
        """
        with self._changed:
            if self._policy is not OverflowPolicy.BREAK_OLDEST:
                self._policy = OverflowPolicy.BREAK_SNAPSHOT
            if compactor_is_gone:
                self._pressing.end()
            self._pressing.tell()

    def note_compactor(self, *, is_missing: bool) -> None:
        """While it is missing nobody makes room: a full ring is a full side buffer, and the policy decides."""
        with self._changed:
            self._compactor_is_missing = is_missing
            self._pressing.tell()

    def may_lose(self) -> bool:
        """Whether an old block that the image cannot give is lost; else the write that wants to replace it fails."""
        return self._policy is not OverflowPolicy.BREAK_WRITE

    # --- called by who preserves -----------------------------------------------------------------------------

    def begin_cut(self) -> None:
        """What it waited for may have ended with the one before (lock held); what that took, the next looks see."""
        self._told_waiting = False
        self._pressing.note()

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
        if self._ending.look_at_store():
            return
        if self._compactor_is_missing and not self._pressing.is_over:
            self.give_way(errno.ENOSPC, news)
        else:
            self._pressing.wait(news)

    def give_way(self, code: int, news: int) -> None:
        """The side buffer takes no more: end the snapshot, fail the write (BufferFull), or wait a little."""
        if self._ending.look_at_store():
            return
        with self._changed:
            if self._pressing.news != news:
                return
            policy = OverflowPolicy.BREAK_WRITE if self.spares_snapshots else self._policy
            is_untold = policy is OverflowPolicy.WAIT and not self._told_waiting
            self._told_waiting |= is_untold
        if policy is OverflowPolicy.BREAK_WRITE:
            raise BufferFull(code)
        if policy is OverflowPolicy.BREAK_SNAPSHOT:
            self._ending.overflow(code, news)
            return
        if policy is OverflowPolicy.BREAK_OLDEST:
            if self._is_coming_back:
                self._pressing.wait(news)
            else:
                self._ending.overflow_oldest(code, news)
            return
        if is_untold:
            self._on_event(Event(EventKind.WAITING, code))
        self._pressing.wait(news)

    @property
    def _is_coming_back(self) -> bool:
        """Whether the compactor is there to give back what the last one that gave way had, and has not done so."""
        is_awaited = not (self._pressing.is_over or self._compactor_is_missing)
        return is_awaited and self._ending.is_coming_back


def _step_at(percent: int) -> int:
    """The highest step that has been reached; 0: none."""
    return max((step for step in _WARN_PERCENT if percent >= step), default=0)
