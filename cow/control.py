"""The control page: numbers that the processes of one instance tell each other, one writer each (see layout).

It is a page of the store, so a killed server's numbers are still there for the next one. Every number is an
aligned u64 that is stored and loaded whole.
"""

from __future__ import annotations

from pathlib import Path

from cow.errors import StoreError
from cow.files import Files, MappedFile
from cow.layout import CONTROL_BYTES, CONTROL_MAGIC, Counter, State


class Control:
    """The mapped numbers: ``control[Counter.X]``."""

    def __init__(self, path: Path, files: Files, *, writable: bool = False, create: bool = False) -> None:
        self.file = MappedFile(path, CONTROL_BYTES, files, writable=writable, create=create)
        self._numbers = memoryview(self.file.map).cast("Q")
        if create:
            self.file.ensure(0, CONTROL_BYTES)
            self._numbers[Counter.MAGIC] = CONTROL_MAGIC
        elif self._numbers[Counter.MAGIC] != CONTROL_MAGIC:
            raise StoreError(str(path.parent), "has a damaged control page")

    def __getitem__(self, counter: int) -> int:
        return self._numbers[counter]

    def __setitem__(self, counter: int, value: int) -> None:
        self._numbers[counter] = value

    @property
    def state(self) -> State:
        """As people see it: DAMAGED also when blocks, or the image's end, were lost, or the number is none known."""
        try:
            state = State(self._numbers[Counter.STATE])
        except ValueError:
            return State.DAMAGED
        is_lossy = self._numbers[Counter.LOST_BLOCKS] or self._numbers[Counter.MISSING_BYTES]
        return State.DAMAGED if state is State.ACTIVE and is_lossy else state

    def numbers(self) -> dict[str, int]:
        """All numbers by name, for status and dumps."""
        return {counter.name.lower(): self._numbers[counter] for counter in Counter}

    def close(self) -> None:
        self._numbers.release()
        self.file.close()
