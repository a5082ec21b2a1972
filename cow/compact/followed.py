"""Which cut's slots are the next to be moved: the compactor follows the live server from cut to cut.

Slots are numbered through all cuts, and each cut notes the first that may be its own. So one whose slots are all
moved is left for the next; one that the header does not name any more is left at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from cow.disk.cut import Cut
from cow.disk.directory import SEGMENTS_NAME
from cow.disk.header import read_header
from cow.disk.layout import Counter, CutCounter
from cow.disk.segment_files import remove_segments_of
from cow.disk.served import Served, looked_through, served_before
from cow.disk.store import Store

_NEVER: Final = 1 << 63


class Followed:
    """`cut`, the one after it in the list of cuts, and those `before` it as far as older readers look through them
    (`looked_through`); all are held. For the compactor's thread only."""

    def __init__(self, store: Store) -> None:
        self._store, self._control = store, store.control
        self.cut, self._header = store.hold_cut(), store.header
        self.before: tuple[Cut, ...] = ()
        self.later: Cut | None = None
        self._headers = -1
        # Whether the header names another cut as the newest than the numbers do, so that the list is not known yet.
        self.is_half_told = False
        self._look()
        while self.before and self._control[Counter.FREED_SEQ] < self.cut.numbers[CutCounter.FIRST_SEQ]:
            self._go_to(self.before[-1].generation)

    @property
    def end_seq(self) -> int:
        """Slots from here on are of a later cut."""
        return _NEVER if self.later is None else self.later.numbers[CutCounter.FIRST_SEQ]

    @property
    def served(self) -> Served:
        """What of `cut` no reader of an older one needs."""
        return served_before(self._header, self.before)

    @property
    def is_present(self) -> bool:
        """Whether the list is the one that was looked at last. A page that is gone is no news."""
        return not self._control[Counter.GENERATION] or self._control[Counter.HEADERS] == self._headers

    def follow(self) -> bool:
        """Go where the next slots are; whether anything about it has changed."""
        changed = False
        while True:
            if not self.is_present:
                self._look()
                changed = True
            if self.later is None or self._control[Counter.FREED_SEQ] < self.end_seq:
                return changed
            self._go_to(self.later.generation)
            changed = True

    def _look(self) -> None:
        """At the header, which has changed."""
        headers, ended = self._control[Counter.HEADERS], self._store.ended()
        header = read_header(self._store.path)
        # One that names another cut than the numbers do may still be taken back; else it is looked at again. What the
        # list before it was, nobody can tell then.
        self.is_half_told = header is not None and header.cut.generation != self._control[Counter.GENERATION]
        if not self.is_half_told:
            self._headers = headers
        if header is not None and not self.is_half_told:
            self._header = header
            self._remove_needless(ended)
            self._control[Counter.FOLLOWED_HEADERS] = headers
        generation = self.cut.generation
        if self._header.cut_of(generation) is None:
            later = self._header.next_of(generation)
            generation = self._header.cut.generation if later is None else later.generation
        self._go_to(generation)

    def _go_to(self, generation: int) -> None:
        generations = [one.generation for one in self._header.cuts]
        at = generations.index(generation)
        known = {one.generation: one for one in self._open}
        before = looked_through(self._header, generation)
        wanted = [*before, *generations[at : at + 2]]
        opened: dict[int, Cut] = {}
        try:
            for one in wanted:
                opened[one] = known.get(one) or self._store.open_cut(one, writable=True, header=self._header)
        except OSError as error:
            for one, cut in opened.items():
                if one not in known:
                    cut.let_go()
            # Gone between the two looks, if there is a later list.
            if isinstance(error, FileNotFoundError) and not self.is_present:
                return
            raise
        self.cut = opened[generation]
        self.before = tuple(opened[one] for one in before)
        self.later = opened[generations[at + 1]] if at + 1 < len(generations) else None
        for one, cut in known.items():
            if one not in opened:
                cut.let_go()

    @property
    def _open(self) -> Iterator[Cut]:
        yield from (*self.before, self.cut)
        if self.later is not None:
            yield self.later

    # --- the others of the list ------------------------------------------------------------------------------

    @property
    def generations(self) -> list[int]:
        """Of all cuts of the list, oldest first."""
        return [one.generation for one in self._header.cuts]

    def may_lose_records(self, generation: int) -> bool:
        """Whether records of that cut may be given back now: no entry that names one is being copied, from it or
        into it. A cut is merged when it is going and there is a newer one, and not before this list was looked at,
        nor before all of its slots are moved; so that is not true of the one that is followed. One after that has its
        turn later."""
        if generation >= self.cut.generation:
            return generation == self.cut.generation
        facts, later = self._header.cut_of(generation), self._header.next_of(generation)
        is_merging_in = later is not None and later.is_going and later is not self._header.cut
        return facts is not None and not facts.is_going and not is_merging_in

    def held_before(self, generation: int, held: contextlib.ExitStack) -> Served:
        """What of that cut of the list no reader of an older one needs; `held` lets go of what was opened for it."""
        before: list[Cut] = []
        for one in looked_through(self._header, generation):
            before.append(self.hold(one))
            held.callback(before[-1].let_go)
        return served_before(self._header, before)

    def was_merged_into(self, generation: int, owner: int) -> bool:
        """Whether that cut is in the list no more, and what others needed of it is the owner's. One after the newest
        is not in it yet."""
        header = self._header
        is_gone = generation < header.cut.generation and header.cut_of(generation) is None
        return is_gone and header.owner_of(generation) == owner

    def hold(self, generation: int) -> Cut:
        """A cut of the list, to be let go. OSError, ValueError, CowError: it is gone, or damaged."""
        for cut in self._open:
            if cut.generation == generation:
                return cut.hold()
        return self._store.open_cut(generation, writable=True, header=self._header)

    def remove_needless(self) -> None:
        """Remove the segments that no cut has any more, and those of the oldest ones as long as these are lost."""
        self._remove_needless(self._store.ended())

    def _remove_needless(self, ended: frozenset[int]) -> None:
        """Not behind one that can be read, which may need what is over; and the newest's are for who appends."""
        header, lost = self._header, set[int | None]([None])
        for one in header.cuts[:-1]:
            if one.generation not in ended:
                break
            lost.add(one.generation)
        with contextlib.suppress(OSError):
            remove_segments_of(self._store.path / SEGMENTS_NAME, lambda number: header.owner_of(number) in lost)

    def close(self) -> None:
        for cut in self._open:
            cut.let_go()
