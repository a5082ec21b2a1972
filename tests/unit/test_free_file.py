"""What a mapper found to be free, as the live server takes it over."""

from __future__ import annotations

from pathlib import Path

import pytest
from bitarray import bitarray

from snapfs.servers.free_file import FREE_NAME, FreeRuns, write_free

PIECE_BLOCKS = 8 << 20


def used(block_count: int, *free: tuple[int, int]) -> bitarray:
    bits = bitarray(block_count, "little")
    bits.setall(1)
    for first, end in free:
        bits[first:end] = 0
    return bits


@pytest.mark.parametrize(
    ("block_count", "free"),
    [
        (1, []),
        (8, [(0, 8)]),
        (13, [(0, 1), (12, 13)]),
        (PIECE_BLOCKS + 8, [(0, 3), (PIECE_BLOCKS, PIECE_BLOCKS + 1)]),
    ],
)
def test_the_runs_are_what_was_written(tmp_path: Path, block_count: int, free: list[tuple[int, int]]) -> None:
    write_free(tmp_path, used(block_count, *free))
    runs = FreeRuns(tmp_path, block_count)
    assert list(runs) == free
    assert list(runs) == free


def test_one_that_is_too_short_is_refused(tmp_path: Path) -> None:
    write_free(tmp_path, used(64, (3, 9)))
    with pytest.raises(OSError, match="too short"):
        list(FreeRuns(tmp_path, 65))


def test_all_used_is_a_hole(tmp_path: Path) -> None:
    write_free(tmp_path, used(PIECE_BLOCKS))
    assert (tmp_path / FREE_NAME).stat().st_blocks == 0
    assert (tmp_path / FREE_NAME).stat().st_size == PIECE_BLOCKS // 8


def test_what_is_taken_over_goes(tmp_path: Path) -> None:
    write_free(tmp_path, used(8))
    FreeRuns(tmp_path, 8).remove()
    assert list(tmp_path.iterdir()) == []
