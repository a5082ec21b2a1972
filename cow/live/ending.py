"""The end of a snapshot while its store is in use: for want of room, of whole files, or of anybody who needs it.

One end at a time, and not under the lock, for the disk has to be told. The blocks that are still owed are not written
before that is done.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import dropwhile, takewhile

from cow.disk.cut import Cut
from cow.disk.files import Files
from cow.disk.layout import KEPT_STATES, Counter, CutCounter, State
from cow.disk.store import Store
from cow.faults import missing_pages
from cow.live.overflow import Event, EventKind
from cow.live.pressing import Pressing
from cow.live.traffic import Gate

_NO_CUT = -1
# Who is told that a snapshot is over has let go of its files by then, if he is there at all.
_GIVE_BACK_S = 5.0


class Ending:
    """For every cut of `store`. `changed` is the condition of the engine's lock, `discard` its preserver's.

    It owns the state of each cut, and says to the disk, to readers and to the owner that one is over.
    """

    def __init__(
        self,
        store: Store,
        changed: threading.Condition,
        gate: Gate,
        pressing: Pressing,
        discard: Callable[[], None],
        wake_compactor: Callable[[], None],
        on_event: Callable[[Event], None],
        tell_of_change: Callable[[], None],
    ) -> None:
        self._store, self._control, self._changed, self._gate = store, store.control, changed, gate
        self._pressing, self._discard, self._wake_compactor = pressing, discard, wake_compactor
        self._on_event, self._tell_of_change = on_event, tell_of_change
        # While a snapshot ends nobody preserves.
        self.is_under_way = False
        # When what the oldest snapshot had is back, the next one may give way.
        self._given_back_headers, self._given_back_until = 0, 0.0
        # The cut that was found to be cut short.
        self._short_generation = _NO_CUT
        # How many pages of mappings are known to be gone, and how many glances found files cut short, is looked at
        # once: these are those that somebody has looked at.
        self._missed_pages, self._glances, self._looked_at = missing_pages[0], 0, 0

    # --- files of the store that are not whole ---------------------------------------------------------------

    @property
    def is_suspect(self) -> bool:
        """Whether files of the store may have been cut short since somebody looked: whoever writes the image looks
        before, or gives it to a thread that does."""
        return missing_pages[0] != self._missed_pages or self._glances != self._looked_at

    def glance_at_store(self) -> None:
        """Now and then: files can become shorter without anybody meeting the pages that are gone."""
        if self._short_generation != self._store.cut.generation and not self._store.is_whole:
            self._glances += 1

    def look_at_store(self) -> bool:
        """Whether files of the store were cut short: the snapshot is over then, since nothing in it can be proven
        right.

        Before the image is written: readers look at this last. The numbers may be in memory of this process alone by
        now, so it is said where all look first of all.
        """
        # What is found meanwhile is looked at again, and until this is done nobody else takes it for looked at.
        missed_pages, glances = missing_pages[0], self._glances
        is_cut_short = self._is_cut_short()
        self._missed_pages, self._looked_at = missed_pages, glances
        return is_cut_short

    def _is_cut_short(self) -> bool:
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

    def note_damage(self, generation: int) -> None:
        """A reader of this cut found something in the store that is not what was written; nothing when it is over."""
        self.look_at_store()
        cuts = self._store.hold_cuts()
        try:
            cut = next((cut for cut in cuts if cut.generation == generation), None)
            if cut is None:
                return
            numbers = cut.numbers
            with self._changed:
                numbers.put(CutCounter.DAMAGED_READS, numbers[CutCounter.DAMAGED_READS] + 1)
                if numbers.state is State.ACTIVE:
                    numbers.put(CutCounter.STATE, State.DAMAGED)
            numbers.keep()
        finally:
            for one in cuts:
                one.let_go()

    # --- no room ---------------------------------------------------------------------------------------------

    def overflow(self, code: int, news: int) -> None:
        """The side buffer takes no more, and every snapshot ends; not when there was `news` since."""
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

    def overflow_oldest(self, code: int, news: int) -> None:
        """The oldest snapshot ends, and the newest only when it is that; what the one before had comes back first."""
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
            self.overflow(code, self._pressing.news)

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
    def is_coming_back(self) -> bool:
        """Whether the room that the last one had is still to come: its files may be open here and there."""
        done = min(self._control[Counter.FOLLOWED_HEADERS], self._control[Counter.SHOWN_HEADERS])
        return done < self._given_back_headers and time.monotonic() < self._given_back_until

    # --- nobody needs it -------------------------------------------------------------------------------------

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

    # --- the steps of an end ---------------------------------------------------------------------------------

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
            if news is not None and self._pressing.news != news:
                return False
            if not self.is_under_way:
                self.is_under_way = True
                return True
            while self.is_under_way:
                self._gate.wait()
            return False

    def _finish_end(self) -> None:
        with self._changed:
            self.is_under_way = False
            self._pressing.tell()
