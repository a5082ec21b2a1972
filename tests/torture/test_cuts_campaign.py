"""A little of the campaign of cuts; `scripts/torture cuts` is the whole of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cuts_campaign import Campaign, Plan
from cuts_content import BLOCK, contents, sequences
from cuts_reader import Follower, Reader, WrongError

MIB = 1 << 20


def test_cuts_under_load_leave_nothing_behind() -> None:
    with Campaign(Plan(seed=1, cuts=25, image_bytes=16 * MIB, load_s=0.05)) as one:
        one.run()
    assert one.counts["whole"] == 25
    # So its seed is chosen.
    assert all(one.counts[step] for step in ("release", "overflow", "limit", "across"))


def image(path: Path, numbers: dict[int, int]) -> Path:
    """Of one writer: each block by the write that it is from, 0 for the beginning."""
    found = [numbers.get(block, 0) for block in range(MIB // BLOCK)]
    path.write_bytes(contents(0, found, np.arange(MIB // BLOCK)).tobytes())
    return path


def after(count: int) -> dict[int, int]:
    """The blocks after so many writes of the first writer, seed 1."""
    follower = Follower(sequences(1, 1, MIB // BLOCK)[0])
    follower.follow(count)
    return dict(enumerate(map(int, follower.last)))


def test_the_reader_takes_an_instant_between_the_bounds(tmp_path: Path) -> None:
    reader = Reader(image(tmp_path / "image", after(20)), 1, 1)
    reader.whole([18], [21])
    reader.again([])


@pytest.mark.parametrize(("low", "high"), [(21, 30), (1, 19)])
def test_the_reader_finds_another_instant(tmp_path: Path, low: int, high: int) -> None:
    reader = Reader(image(tmp_path / "image", after(20)), 1, 1)
    with pytest.raises(WrongError, match="the last write is 20"):
        reader.whole([low], [high])


def test_the_reader_finds_a_block_of_another_instant(tmp_path: Path) -> None:
    found = after(20)
    first, _ = sequences(1, 1, MIB // BLOCK)[0].place(19)
    found[first] = 0
    with pytest.raises(WrongError, match="as after write 20"):
        Reader(image(tmp_path / "image", found), 1, 1).whole([18], [21])


def test_the_reader_finds_a_byte_that_nobody_wrote(tmp_path: Path) -> None:
    path = image(tmp_path / "image", after(20))
    with path.open("r+b") as file:
        file.seek(5 * BLOCK + 100)
        file.write(b"wrong")
    with pytest.raises(WrongError, match="block 5 is not as after write"):
        Reader(path, 1, 1).whole([18], [21])


def test_the_reader_misses_what_was_to_fail(tmp_path: Path) -> None:
    reader = Reader(image(tmp_path / "image", after(1)), 1, 1)
    reader.whole([1], [1])
    with pytest.raises(WrongError, match=r"at 0 is what was there, released are \[\[0, 1048576\]\]"):
        reader.again([[0, MIB]])
