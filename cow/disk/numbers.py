"""Pages of numbers that the processes of one instance tell each other, one writer for each number (see layout).

They are files of the store, so a killed server's numbers are still there for the next one. Every number is an
aligned u64 that is stored and loaded whole.

Where a page may not be stored into through its mapping, the numbers live in memory that the processes of the
instance inherit (`SharedPages`), and are written back: what the disk refuses then is written with the next number.
"""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path
from typing import ClassVar, Final

from cow.disk.files import Files
from cow.disk.filesystems import Storing
from cow.disk.layout import (
    CONTROL_MAGIC,
    KEPT_STATES,
    NUMBERS_MAGIC,
    PAGE_OF_NUMBERS_BYTES,
    UNSEEN_MARK,
    Counter,
    CutCounter,
    Number,
    State,
    Trait,
)
from cow.disk.mapped_file import MappedFile
from cow.errors import StoreDamaged

# Places as plain numbers: to look a member of an enumeration up takes longer than to use it.
_STATE: Final = CutCounter.STATE.value
_UNREADABLE: Final = CutCounter.UNREADABLE.value
# Where the pages of cuts begin, and how many there are: more than any process can be cuts behind.
_OF_CUTS: Final = 3
_SHARED_PAGES: Final = 256


class SharedPages:
    """Memory for pages, inherited by every process that is forked after it was made; untouched, it costs nothing."""

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, (_OF_CUTS + _SHARED_PAGES) * PAGE_OF_NUMBERS_BYTES))
        self._ended = self._page(1).cast("Q")

    def _page(self, place: int) -> memoryview:
        return self._memory[place * PAGE_OF_NUMBERS_BYTES : (place + 1) * PAGE_OF_NUMBERS_BYTES]

    @property
    def control(self) -> memoryview:
        return self._page(0)

    @property
    def releases(self) -> memoryview:
        """See `ReleaseQueue`."""
        return self._page(2)

    def of_cut(self, generation: int) -> memoryview:
        """The same page in each process, and that of the cut 256 generations later."""
        return self._page(_OF_CUTS + generation % _SHARED_PAGES)

    @staticmethod
    def share_a_page(one: int, other: int) -> bool:
        return one % _SHARED_PAGES == other % _SHARED_PAGES

    def end(self, generation: int) -> None:
        """From here on no process gives anything of this cut: it is over, or lost. Unlike a number in a file, this
        reaches the others whatever becomes of the store's disk."""
        self._ended[generation % _SHARED_PAGES] = generation

    def ended(self) -> frozenset[int]:
        """All that ended, as far as no later one has its place."""
        return frozenset(self._ended)

    def end_of(self, generation: int) -> memoryview:
        """One number, which is that of the cut once it has ended: to look at it costs less than a call."""
        at = generation % _SHARED_PAGES
        return self._ended[at : at + 1]


class Page:
    """The mapped numbers: `page[Counter.X]`. Where a mapping is only looked at, `shared` is used in its place;
    who opens the page first in an instance (`fill`) fills it from the file."""

    numbers: ClassVar[type[Number]]
    magic: ClassVar[int]
    title: ClassVar[str]

    def __init__(
        self,
        path: Path,
        files: Files,
        *,
        writable: bool = False,
        create: bool = False,
        shared: memoryview | None = None,
        fill: bool = True,
    ) -> None:
        self.file = MappedFile(path, PAGE_OF_NUMBERS_BYTES, files, writable=writable, create=create)
        self._whole = memoryview(self.file.map)
        if self.file.storing is Storing.WRITTEN and (writable or shared is not None):
            memory = SharedPages().control if shared is None else shared
            if fill:
                memory[:] = self._whole
            self._whole = memory
        self._numbers = self._whole.cast("Q")
        self._kept_by_next = frozenset(
            number for number in self.numbers if not number.traits & {Trait.RECOUNTED, Trait.PASSING}
        )
        if create:
            self.file.ensure(0, PAGE_OF_NUMBERS_BYTES)
            self[0] = self.magic
        elif self._numbers[0] != self.magic:
            raise StoreDamaged(str(path.parent), f"has a damaged {self.title}")

    @property
    def view(self) -> memoryview:
        """To look at numbers by their places as quickly as can be, until the page is closed."""
        return self._numbers

    def __getitem__(self, place: int) -> int:
        return self._numbers[place]

    def __setitem__(self, place: int, value: int) -> None:
        self._numbers[place] = value
        if self.file.is_written and place in self._kept_by_next:
            # The page as a whole: it makes up for what could not be written before.
            self.keep()

    def put(self, place: int, value: int) -> None:
        """The same without the file, for who holds a lock: `keep` follows, before anything relies on it."""
        self._numbers[place] = value

    def keep(self) -> None:
        """Try to have the file hold what was `put`; the next one makes up for what the disk refuses."""
        if self.file.is_written:
            with contextlib.suppress(OSError):
                self.file.store(0, self._whole)

    def write_back(self) -> None:
        """What a number alone only tries; OSError: the disk refused."""
        if self.file.is_written:
            self.file.store(0, self._whole)

    def by_name(self) -> dict[str, int]:
        """All numbers by name, for dumps."""
        return {number.name.lower(): self._numbers[number] for number in self.numbers}

    def close(self) -> None:
        self._numbers.release()
        self._whole.release()
        self.file.close()


class Control(Page):
    """The numbers of all cuts of a store."""

    numbers = Counter
    magic = CONTROL_MAGIC
    title = "control page"

    @property
    def is_unseen(self) -> bool:
        """Whether who mounts has not yet had both views answer, and been told."""
        return self._numbers[Counter.UNSEEN] == UNSEEN_MARK

    @is_unseen.setter
    def is_unseen(self, is_so: bool) -> None:
        self[Counter.UNSEEN] = UNSEEN_MARK if is_so else 0


class CutNumbers(Page):
    """The numbers of one cut."""

    numbers = CutCounter
    magic = NUMBERS_MAGIC
    title = "page of numbers"

    @property
    def state(self) -> State:
        """As people see it: DAMAGED also when blocks, or the image's end, were lost, or the number is none known."""
        try:
            state = State(self._numbers[_STATE])
        except ValueError:
            return State.DAMAGED
        is_lossy = self.lost_blocks or self._numbers[CutCounter.MISSING_BYTES]
        return State.DAMAGED if state is State.ACTIVE and is_lossy else state

    @property
    def lost_blocks(self) -> int:
        """How many blocks read as errors though somebody may ask for them; each process counts what it met."""
        numbers = self._numbers
        lost = numbers[CutCounter.LOST_BLOCKS] + numbers[CutCounter.SPOILT_BLOCKS]
        return max(0, lost - numbers[CutCounter.EXCUSED_BLOCKS])

    @property
    def is_kept(self) -> bool:
        """Whether anything of the snapshot can still be read, so that it is worth preserving and moving."""
        return self._numbers[_STATE] in KEPT_STATES and not self._numbers[_UNREADABLE]
