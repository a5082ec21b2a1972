"""Range arithmetic of the imager, against the plainest way to compute it."""

from __future__ import annotations

import itertools
import random

import pytest
from bitarray import bitarray

from snapfs.imager.extents import CELL_BYTES, EXTENT_BYTES, Extent, free_blocks_in, free_ranges, plan

BLOCK = 4096


def used_blocks(count: int, *ranges: tuple[int, int]) -> bitarray:
    bits = bitarray(count, "little")
    bits.setall(0)
    for first, end in ranges:
        bits[first:end] = 1
    return bits


def test_one_used_block_takes_its_cell_with_it() -> None:
    assert plan(used_blocks(64, (17, 18)), BLOCK, 64 * BLOCK) == [Extent(CELL_BYTES, CELL_BYTES)]


def test_an_extent_never_crosses_a_border() -> None:
    size = 2 * EXTENT_BYTES + 5 * CELL_BYTES
    found = plan(used_blocks(size // BLOCK, (0, size // BLOCK)), BLOCK, size)
    assert found == [
        Extent(0, EXTENT_BYTES),
        Extent(EXTENT_BYTES, EXTENT_BYTES),
        Extent(2 * EXTENT_BYTES, 5 * CELL_BYTES),
    ]


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, CELL_BYTES - 1, CELL_BYTES, CELL_BYTES + 1])
def test_the_last_extent_ends_with_the_image(size: int) -> None:
    found = plan(used_blocks(-(-size // BLOCK), (0, -(-size // BLOCK))), BLOCK, size)
    assert found[-1].end == size


@pytest.mark.parametrize("block_bytes", [512, 4096, CELL_BYTES, 1 << 20])
def test_every_used_byte_is_in_one_extent(block_bytes: int) -> None:
    dice = random.Random(block_bytes)
    size = 40 * (1 << 20) + 700
    used = bitarray((dice.random() < 0.02 for _ in range(-(-size // block_bytes))), "little")
    extents = plan(used, block_bytes, size)
    assert all(one.end <= two.offset for one, two in itertools.pairwise(extents))
    covered = bitarray(size)
    covered.setall(0)
    for extent in extents:
        covered[extent.offset : extent.end] = 1
    for block in used.search(bitarray("1")):
        assert covered[block * block_bytes : min((block + 1) * block_bytes, size)].all()


def test_holes_are_extents_of_their_own_and_are_not_split() -> None:
    size = 3 * EXTENT_BYTES
    holes = bitarray(size // CELL_BYTES, "little")
    holes.setall(1)
    holes[0] = 0
    found = plan(used_blocks(size // BLOCK, (0, size // BLOCK)), BLOCK, size, holes)
    assert found == [Extent(0, CELL_BYTES), Extent(CELL_BYTES, size - CELL_BYTES, is_zeros=True)]


def test_free_ranges_fill_what_extents_leave() -> None:
    extents = [Extent(10, 5), Extent(15, 5), Extent(30, 10)]
    assert list(free_ranges(extents, 50)) == [(0, 10), (20, 10), (40, 10)]
    assert list(free_ranges([], 7)) == [(0, 7)]
    assert list(free_ranges([Extent(0, 7)], 7)) == []


def test_free_blocks_inside_a_piece() -> None:
    used = used_blocks(32, (16, 18), (20, 31))
    assert list(free_blocks_in(used, BLOCK, CELL_BYTES, CELL_BYTES)) == [
        (2 * BLOCK, 4 * BLOCK),
        (15 * BLOCK, 16 * BLOCK),
    ]


def test_requests_cover_an_extent() -> None:
    assert list(Extent(100, 25).pieces(10)) == [(100, 10), (110, 10), (120, 5)]
