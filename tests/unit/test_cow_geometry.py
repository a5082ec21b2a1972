"""Offsets, blocks and runs at their borders."""

from __future__ import annotations

import pytest

from cow.errors import OutOfRange
from cow.geometry import Geometry

BLOCK = 4096
GEOMETRY = Geometry(10 * BLOCK + 100, BLOCK)
END = GEOMETRY.image_bytes


@pytest.mark.parametrize(
    ("offset", "length", "span"),
    [
        (0, 1, (0, 1)),
        (0, BLOCK - 1, (0, 1)),
        (0, BLOCK, (0, 1)),
        (0, BLOCK + 1, (0, 2)),
        (BLOCK - 1, 1, (0, 1)),
        (BLOCK - 1, 2, (0, 2)),
        (BLOCK, 1, (1, 2)),
        (0, END, (0, 11)),
        (END - 1, 1, (10, 11)),
        (10 * BLOCK - 1, 101, (9, 11)),
    ],
)
def test_span(offset: int, length: int, span: tuple[int, int]) -> None:
    assert GEOMETRY.span(offset, length) == span


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, 0), (0, -1), (0, END + 1), (END, 1), (END + 1, 1)])
def test_span_outside_the_image_is_refused(offset: int, length: int) -> None:
    with pytest.raises(OutOfRange):
        GEOMETRY.span(offset, length)


@pytest.mark.parametrize(
    ("offset", "length", "span"),
    [
        (0, BLOCK, (0, 1)),
        (0, BLOCK - 1, (0, 0)),
        (1, 2 * BLOCK - 1, (1, 2)),
        (1, 2 * BLOCK - 2, (1, 1)),
        (10 * BLOCK, 100, (10, 11)),
        (10 * BLOCK, 99, (10, 10)),
        (0, END, (0, 11)),
        (5, 0, (1, 0)),
    ],
)
def test_inner_span_holds_whole_blocks_only(offset: int, length: int, span: tuple[int, int]) -> None:
    assert GEOMETRY.inner_span(offset, length) == span


def test_inner_span_outside_the_image_is_refused() -> None:
    with pytest.raises(OutOfRange):
        GEOMETRY.inner_span(END, 1)


@pytest.mark.parametrize(
    ("first", "end", "extent"), [(0, 1, (0, BLOCK)), (9, 11, (9 * BLOCK, BLOCK + 100)), (10, 11, (10 * BLOCK, 100))]
)
def test_extent_ends_with_the_image(first: int, end: int, extent: tuple[int, int]) -> None:
    assert GEOMETRY.extent(first, end) == extent


@pytest.mark.parametrize(
    ("offset", "length", "clipped"), [(0, 5, 5), (END - 1, 5, 1), (END, 5, 0), (END + 5, 5, 0), (0, END + 1, END)]
)
def test_clip(offset: int, length: int, clipped: int) -> None:
    assert GEOMETRY.clip(offset, length) == clipped


def test_pieces_are_cut_at_block_borders() -> None:
    assert GEOMETRY.pieces(100, 5 * BLOCK, 2) == [
        (100, 2 * BLOCK - 100),
        (2 * BLOCK, 2 * BLOCK),
        (4 * BLOCK, BLOCK + 100),
    ]
    assert GEOMETRY.pieces(5, 0, 2) == []


@pytest.mark.parametrize(
    ("first", "end", "offset", "length", "overlap"),
    [
        (0, 1, 0, BLOCK, (0, 0, BLOCK)),
        (0, 1, 10, 20, (10, 0, 20)),
        (1, 2, 10, 2 * BLOCK, (0, BLOCK - 10, BLOCK)),
        (10, 11, 9 * BLOCK, BLOCK + 100, (0, BLOCK, 100)),
    ],
)
def test_overlap(first: int, end: int, offset: int, length: int, overlap: tuple[int, int, int]) -> None:
    assert GEOMETRY.overlap(first, end, offset, length) == overlap


@pytest.mark.parametrize("block_bytes", [0, 511, 513, 256, 2 << 20])
def test_impossible_block_sizes_are_refused(block_bytes: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Geometry(1 << 20, block_bytes)


@pytest.mark.parametrize("image_bytes", [0, -1, (16 << 40) + 1])
def test_impossible_image_sizes_are_refused(image_bytes: int) -> None:
    with pytest.raises(ValueError, match="16 TiB"):
        Geometry(image_bytes, BLOCK)


@pytest.mark.parametrize(("image_bytes", "count"), [(1, 1), (BLOCK, 1), (BLOCK + 1, 2), (16 << 40, 1 << 32)])
def test_block_count(image_bytes: int, count: int) -> None:
    assert Geometry(image_bytes, BLOCK).block_count == count
