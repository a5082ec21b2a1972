"""The control page: numbers that the processes of one instance tell each other, one writer each (see layout).

It is a page of the store, so a killed server's numbers are still there for the next one. Every number is an
aligned u64 that is stored and loaded whole.

Where the page may not be stored into through its mapping, the numbers live in memory that the processes of the
instance inherit, and are written back: what the disk refuses then is written with the next number.
"""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path
from typing import Final

from cow.errors import StoreDamaged
from cow.files import Files, MappedFile
from cow.layout import CONTROL_BYTES, CONTROL_MAGIC, KEPT_STATES, UNSEEN_MARK, Counter, State

# Places as plain numbers: to look a member of an enumeration up takes longer than to use it.
_STATE: Final = Counter.STATE.value
_UNREADABLE: Final = Counter.UNREADABLE.value
# What nobody needs after a kill, because it is counted again or means nothing then.
_RECOUNTED = frozenset(
    {
        Counter.PRESERVED_BLOCKS,
        Counter.SETTLED_BLOCKS,
        Counter.CHANGED_BLOCKS,
        Counter.RELEASED_BLOCKS,
        Counter.FREE_BLOCKS,
        Counter.PRESSED,
        Counter.COMPACTOR_IDLE,
        Counter.SHOWN_GENERATION,
    }
)


class Control:
    """The mapped numbers: ``control[Counter.X]``."""

    def __init__(self, path: Path, files: Files, *, writable: bool = False, create: bool = False) -> None:
        self.file = MappedFile(path, CONTROL_BYTES, files, writable=writable, create=create)
        memory = self.file.map
        if self.file.is_written:
            memory = mmap.mmap(-1, CONTROL_BYTES)
            memory[:] = self.file.map[:]
        self._whole = memoryview(memory)
        self._numbers = self._whole.cast("Q")
        if create:
            self.file.ensure(0, CONTROL_BYTES)
            self[Counter.MAGIC] = CONTROL_MAGIC
        elif self._numbers[Counter.MAGIC] != CONTROL_MAGIC:
            raise StoreDamaged(str(path.parent), "has a damaged control page")

    def __getitem__(self, counter: int) -> int:
        return self._numbers[counter]

    def __setitem__(self, counter: int, value: int) -> None:
        self._numbers[counter] = value
        if self.file.is_written and counter not in _RECOUNTED:
            # The page as a whole: it makes up for what could not be written before.
            with contextlib.suppress(OSError):
                self.file.store(0, self._whole)

    @property
    def state(self) -> State:
        """As people see it: DAMAGED also when blocks, or the image's end, were lost, or the number is none known."""
        try:
            state = State(self._numbers[Counter.STATE])
        except ValueError:
            return State.DAMAGED
        is_lossy = self._numbers[Counter.LOST_BLOCKS] or self._numbers[Counter.MISSING_BYTES]
        return State.DAMAGED if state is State.ACTIVE and is_lossy else state

    @property
    def is_kept(self) -> bool:
        """Whether anything of the snapshot can still be read, so that it is worth preserving and moving."""
        return self._numbers[_STATE] in KEPT_STATES and not self._numbers[_UNREADABLE]

    @property
    def is_unseen(self) -> bool:
        """Whether who mounts has not yet had both views answer."""
        return self._numbers[Counter.UNSEEN] == UNSEEN_MARK

    @is_unseen.setter
    def is_unseen(self, is_so: bool) -> None:
        self[Counter.UNSEEN] = UNSEEN_MARK if is_so else 0

    def numbers(self) -> dict[str, int]:
        """All numbers by name, for status and dumps."""
        return {counter.name.lower(): self._numbers[counter] for counter in Counter}

    def close(self) -> None:
        self._numbers.release()
        self._whole.release()
        self.file.close()
