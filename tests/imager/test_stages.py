"""Reading and writing side by side: order, failures, zeros."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from cow import Files, Image
from snapfs.imager.extents import CELL_BYTES, EXTENT_BYTES, Extent
from snapfs.imager.pace import Pace
from snapfs.imager.sparse import data_runs, hole_cells, make_zeros
from snapfs.imager.stages import PIECE_BYTES, Stages

SIZE = 3 * EXTENT_BYTES + 12345
EXTENTS = [Extent(0, EXTENT_BYTES), Extent(2 * EXTENT_BYTES, EXTENT_BYTES), Extent(3 * EXTENT_BYTES, 12345)]


class Memory:
    """An image in memory, read and written by offset."""

    def __init__(self, content: bytes) -> None:
        self.content = bytearray(content)

    def read(self, view: memoryview, offset: int) -> None:
        view[:] = self.content[offset : offset + len(view)]

    def write(self, view: memoryview, offset: int) -> None:
        self.content[offset : offset + len(view)] = view


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(1).randbytes(SIZE)


def run_stages(read: object, write: object) -> list[tuple[int, bytes]]:
    finished: list[tuple[int, bytes]] = []
    stages = Stages(read, write, lambda *facts: finished.append(facts), lambda length: None, Pace(None))  # type: ignore[arg-type]
    try:
        stages.run(enumerate(EXTENTS))
    finally:
        assert not [thread for thread in threading.enumerate() if thread.name == "writer"]
    return finished


def test_extents_arrive_whole_in_order_and_hashed(content: bytes) -> None:
    target = Memory(bytes(SIZE))
    finished = run_stages(Memory(content).read, target.write)
    for index, extent in enumerate(EXTENTS):
        part = content[extent.offset : extent.end]
        assert target.content[extent.offset : extent.end] == part
        assert finished[index] == (index, blake3(part).digest())
    assert not any(target.content[EXTENT_BYTES : 2 * EXTENT_BYTES])


def test_what_is_read_soon_is_announced_and_no_more(content: bytes) -> None:
    ahead = 0
    depths = []

    def announce(offset: int, length: int) -> None:
        nonlocal ahead
        ahead += length

    def read(view: memoryview, offset: int) -> None:
        nonlocal ahead
        depths.append(ahead)
        ahead -= len(view)

    stages = Stages(
        read, lambda view, offset: None, lambda *_: None, lambda length: None, Pace(None), announce=announce
    )
    stages.run(enumerate(EXTENTS))
    assert ahead == 0
    assert max(depths) <= 8 << 20 | PIECE_BYTES
    assert min(depths[: -(8 << 20) // PIECE_BYTES]) >= 8 << 20, "a disk has several requests at a time"


def test_a_reader_that_fails_ends_both_and_keeps_what_was_read(content: bytes) -> None:
    source, target = Memory(content), Memory(bytes(SIZE))

    def read(view: memoryview, offset: int) -> None:
        if offset >= 2 * EXTENT_BYTES + PIECE_BYTES:
            raise OSError(5, "broken")
        source.read(view, offset)

    with pytest.raises(OSError, match="broken"):
        run_stages(read, target.write)
    end = 2 * EXTENT_BYTES + PIECE_BYTES
    assert target.content[2 * EXTENT_BYTES : end] == content[2 * EXTENT_BYTES : end]


def test_a_writer_that_fails_ends_both(content: bytes) -> None:
    writes = []

    def write(view: memoryview, offset: int) -> None:
        writes.append(offset)
        raise OSError(28, "full")

    with pytest.raises(OSError, match="full"):
        run_stages(Memory(content).read, write)
    assert writes == [0]


def test_a_rate_is_kept() -> None:
    slept: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("snapfs.imager.pace.time.sleep", sleep)
        patch.setattr("snapfs.imager.pace.time.monotonic", lambda: now[0])
        pace = Pace(1000)
        for _ in range(11):
            pace.wait_for(500)
    assert sum(slept) == pytest.approx(5.0, abs=0.5)


@pytest.mark.parametrize("seed", range(20))
def test_data_runs_leave_out_nothing_but_zeros(seed: int) -> None:
    dice = random.Random(seed)
    length = dice.randrange(1, 40 * CELL_BYTES)
    buffer = bytearray(length)
    for _ in range(dice.randrange(6)):
        buffer[dice.randrange(length)] = 1
    runs = list(data_runs(memoryview(buffer)))
    rest = bytearray(buffer)
    for start, stop in runs:
        assert start % CELL_BYTES == 0
        rest[start:stop] = bytes(stop - start)
    assert not any(rest)
    assert sum(stop - start for start, stop in runs) <= CELL_BYTES * (buffer.count(1) + 1)


def test_holes_of_a_file_are_found(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(10 * CELL_BYTES + 5)
        file.seek(3 * CELL_BYTES + 100)
        file.write(b"x")
    fd = os.open(path, os.O_RDWR)
    try:
        image = Image(fd, 10 * CELL_BYTES + 5, Files())
        assert hole_cells(image).to01() == "11101111111"
        os.pwrite(fd, b"y" * 5, 10 * CELL_BYTES)
        make_zeros(fd, 3 * CELL_BYTES, CELL_BYTES)
        assert hole_cells(image).to01() == "11111111110"
    finally:
        os.close(fd)
