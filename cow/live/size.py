"""The size of the side buffer, and its limit: the one place that computes them from the numbers of the processes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import dropwhile
from typing import Final

from cow.disk.cut import Cut
from cow.disk.layout import Counter, CutCounter
from cow.disk.store import Store

# Places in the pages as plain numbers: to look a member of an enumeration up takes longer than to use it.
_LIMIT_BYTES: Final = Counter.LIMIT_BYTES.value
_RESERVED_SEQ: Final = Counter.RESERVED_SEQ.value
_FREED_SEQ: Final = Counter.FREED_SEQ.value
_FIRST_SEQ: Final = CutCounter.FIRST_SEQ.value
_STORED_BYTES: Final = CutCounter.STORED_BYTES.value
_STORED_RAW_BYTES: Final = CutCounter.STORED_RAW_BYTES.value
_RETURNED_BYTES: Final = CutCounter.RETURNED_BYTES.value


@dataclass(frozen=True)
class Shown:
    """The side buffer as people see it, in bytes: before compression, as it is now, and the part in the ring."""

    raw_bytes: int
    stored_bytes: int
    staged_bytes: int


def stored_in(cut: Cut) -> int:
    """Bytes that the segments of the cut hold for it; none of one that is lost or deleted, which only wait to be
    removed."""
    numbers = cut.numbers
    if not numbers.is_kept:
        return 0
    stored_bytes = numbers[_STORED_BYTES] - numbers[_RETURNED_BYTES]
    # Two processes count, and one may be a step ahead of the other.
    return stored_bytes if stored_bytes > 0 else 0


class BufferSize:
    """How large the side buffer of all cuts of `store` is.

    =========  ===================================================================================================
    staged     in the ring, raw until it is known how small they get; without the slots of a cut that is gone, which
               are about to be forgotten
    stored     payload of the records in segments, without what was given back
    promised   raw, on the way into a segment (`power`): counted until its index entries are made
    =========  ===================================================================================================
    """

    def __init__(self, store: Store) -> None:
        self._store, self._control, self._block_bytes = store, store.control, store.geometry.block_bytes
        # Its preserver counts here, with the engine's lock held.
        self.promised_bytes = 0
        # As of the last look at all older cuts: which there were, what they had stored, and the freed slots.
        self._older: tuple[Cut, ...] = ()
        self._older_bytes = self._freed_seq = 0

    def _look(self) -> tuple[int, int]:
        """The staged bytes and the stored bytes, from the numbers of every cut."""
        freed_seq, older_bytes = self._look_at_older(self._store.older)
        slots = self._control[_RESERVED_SEQ] - freed_seq
        return slots * self._block_bytes, stored_in(self._store.cut) + older_bytes

    def _look_at_older(self, all_older: tuple[Cut, ...]) -> tuple[int, int]:
        """Slots below are freed, or of no cut any more; and what the older cuts have stored."""
        # Of one that is lost nobody needs anything, nor of hidden ones that nobody reads through: their records go
        # (`Compactor.tidy`, `Followed.remove_needless`).
        older = self._needed_of(all_older) if all_older else ()
        oldest = older[0] if older else self._store.cut
        # Freed before stored: a step that ends in between is counted twice, not missed.
        freed_seq = max(self._control[_FREED_SEQ], oldest.numbers[_FIRST_SEQ])
        return freed_seq, sum(map(stored_in, older))

    def _needed_of(self, all_older: tuple[Cut, ...]) -> list[Cut]:
        shown = {facts.generation for facts in self._store.header.shown}
        kept = [cut for cut in all_older if cut.numbers.is_kept]
        return list(dropwhile(lambda cut: cut.generation not in shown, kept))

    def _is_surely_within(self, most_bytes: int) -> bool:
        """Whether it is no more than that, by the last look at the older cuts: a write's time must not depend on how
        many there are. What was moved since then counts twice, what was given back still counts; in no other way do
        they get larger but by a merge, and then they are forgotten here."""
        store = self._store
        if not store.older or store.older is not self._older:
            return False
        slots = self._control[_RESERVED_SEQ] - self._freed_seq
        return stored_in(store.cut) + self._older_bytes + slots * self._block_bytes <= most_bytes

    def forget_older(self) -> None:
        """They have other numbers now (lock held)."""
        self._older = ()

    def over_limit(self, more_bytes: int) -> bool:
        """Whether the side buffer has no room for so much more, raw (lock held)."""
        limit_bytes = self._control[_LIMIT_BYTES]
        if not limit_bytes:
            return False
        most_bytes = limit_bytes - self.promised_bytes - more_bytes
        if self._is_surely_within(most_bytes):
            return False
        self._look_again()
        slots = self._control[_RESERVED_SEQ] - self._freed_seq
        return stored_in(self._store.cut) + self._older_bytes + slots * self._block_bytes > most_bytes

    def _look_again(self) -> None:
        self._older = self._store.older
        self._freed_seq, self._older_bytes = self._look_at_older(self._older)

    def percent_of(self, limit_bytes: int) -> int:
        """How much of a limit is taken if what is staged compresses as all before it did (lock held)."""
        store, freed_seq = self._store, self._control[_FREED_SEQ]
        numbers = store.cut.numbers
        # Older cuts get more only while the compactor moves slots of theirs.
        if store.older is not self._older or self._freed_seq < min(freed_seq, numbers[_FIRST_SEQ]):
            self._look_again()
        staged_bytes = (self._control[_RESERVED_SEQ] - max(freed_seq, self._freed_seq)) * self._block_bytes
        taken_bytes = stored_in(store.cut) + self._older_bytes
        payload_bytes, raw_bytes = numbers[_STORED_BYTES], numbers[_STORED_RAW_BYTES]
        taken_bytes += staged_bytes * payload_bytes // raw_bytes if raw_bytes else staged_bytes
        return 100 * taken_bytes // limit_bytes

    def staged_bytes(self) -> int:
        """Raw bytes that are in the ring and in no segment yet."""
        return self._look()[0]

    @property
    def ring_is_empty(self) -> bool:
        """Whether no slot is in use, not even for the cut before."""
        return self._control[_RESERVED_SEQ] == self._control[_FREED_SEQ]

    def shown(self) -> Shown:
        """For status."""
        staged_bytes, stored_bytes = self._look()
        raw_bytes = sum(cut.numbers[_STORED_RAW_BYTES] for cut in self._store.cuts if cut.numbers.is_kept)
        return Shown(raw_bytes + staged_bytes, stored_bytes + staged_bytes, staged_bytes)
