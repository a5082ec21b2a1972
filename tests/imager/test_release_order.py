"""Which ranges a backup releases, and when: never what it has yet to read."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from snapfs.imager.backup import Backup, Plan
from snapfs.imager.extents import CELL_BYTES, Extent
from snapfs.imager.journal import Done
from snapfs.imager.pace import Pace

CELL = CELL_BYTES
SIZE = 16 * CELL
# Cells that are read, one that is known to be zeros, and gaps in which the plan has nothing.
EXTENTS = [
    Extent(CELL, CELL),
    Extent(3 * CELL, CELL, is_zeros=True),
    Extent(5 * CELL, 2 * CELL),
    Extent(9 * CELL, CELL),
]


@dataclass
class Memory:
    """An image of zeros, and a target that takes all of it; what was done to them in order."""

    done: list[tuple[str, int, int]] = field(default_factory=list)
    size_bytes = SIZE
    is_durable = True

    def read_into(self, view: memoryview, offset: int) -> None:
        view[:] = bytes(len(view))
        self.done.append(("read", offset, len(view)))

    def will_read(self, offset: int, length: int) -> None:
        self.done.append(("announced", offset, length))

    def release(self, offset: int, length: int) -> None:
        self.done.append(("released", offset, length))

    def write(self, view: memoryview, offset: int) -> None: ...
    def write_zeros(self, offset: int, length: int) -> None: ...
    def sync(self) -> None: ...
    def finish(self) -> None: ...
    def check(self) -> None: ...
    def buffer_bytes(self) -> None: ...

    def ranges(self, kind: str) -> list[tuple[int, int]]:
        return [(offset // CELL, length // CELL) for what, offset, length in self.done if what == kind]


def back_up(memory: Memory, done: dict[int, Done], *, releases: bool = True) -> None:
    backup = Backup(memory, memory, Plan(EXTENTS, done), None, releases=releases, skips=False, pace=Pace(None))  # type: ignore[arg-type]
    backup.run(lambda progress: None)


def test_what_lies_between_the_extents_of_a_plan_is_released_with_them() -> None:
    memory = Memory()
    back_up(memory, {})
    assert memory.ranges("read") == [(1, 1), (5, 2), (9, 1)]
    assert memory.ranges("released") == [(1, 9)]


def test_nothing_that_a_resumed_backup_has_yet_to_read_is_released_before() -> None:
    memory = Memory()
    back_up(memory, {0: Done(b""), 3: Done(b"")})
    released = memory.ranges("released")
    assert released == [(1, 1), (9, 1), (5, 2)]
    assert memory.done.index(("read", 5 * CELL, 2 * CELL)) < memory.done.index(("released", 5 * CELL, 2 * CELL))


def test_what_could_not_be_read_is_never_released() -> None:
    memory = Memory()
    back_up(memory, {0: Done(b"", [(CELL, CELL)]), 2: Done(b""), 3: Done(b"")})
    assert memory.ranges("released") == [(2, 8)]


def test_everything_is_announced_before_it_is_read() -> None:
    memory = Memory()
    back_up(memory, {2: Done(b"")}, releases=False)
    assert memory.ranges("announced") == memory.ranges("read") == [(1, 1), (9, 1)]
    for what, offset, length in memory.done:
        if what == "read":
            assert memory.done.index(("announced", offset, length)) < memory.done.index((what, offset, length))


@pytest.mark.parametrize("releases", [True, False])
def test_a_backup_of_which_all_is_done_reads_nothing(releases: bool) -> None:
    memory = Memory()
    back_up(memory, {0: Done(b""), 2: Done(b""), 3: Done(b"")}, releases=releases)
    assert not memory.ranges("read")
    assert memory.ranges("released") == ([(1, 9)] if releases else [])
