"""From free units to free blocks, judged by a model that looks at every 512 bytes."""

from __future__ import annotations

import pytest
from bitarray import bitarray
from bitarray.util import ones
from hypothesis import given
from hypothesis import strategies as st
from linux_images import stretches

from snapfs.usedmap import fold
from snapfs.usedmap.fold import clear_free_blocks, expand_bits, fold_bits
from snapfs.usedmap.result import FreeMap, ImageMap, MapError

SECTOR = 512


def empty_map(size_bytes: int, block_bytes: int) -> ImageMap:
    return ImageMap(block_bytes, size_bytes, ones(-(-size_bytes // block_bytes), "little"))


def used_by_model(image_map: ImageMap, free_map: FreeMap, offset: int) -> bitarray:
    free = bytearray(-(-image_map.size_bytes // image_map.block_bytes) * image_map.block_bytes // SECTOR)
    for index, bit in enumerate(free_map.free):
        start = (offset + free_map.data_offset + index * free_map.unit_bytes) // SECTOR
        for sector in range(start, start + free_map.unit_bytes // SECTOR):
            free[sector] = bit
    per_block = image_map.block_bytes // SECTOR
    blocks = [not all(free[at : at + per_block]) for at in range(0, len(free), per_block)]
    return bitarray(blocks, endian="little")


@given(
    block_log=st.integers(9, 14),
    unit_log=st.integers(9, 14),
    offset_sectors=st.integers(0, 70),
    data_sectors=st.integers(0, 9),
    tail_sectors=st.integers(0, 9),
    bits=st.lists(st.booleans(), max_size=200),
    runs=st.integers(1, 40),
)
def test_a_block_is_free_only_when_all_its_bytes_are(
    block_log: int,
    unit_log: int,
    offset_sectors: int,
    data_sectors: int,
    tail_sectors: int,
    bits: list[bool],
    runs: int,
) -> None:
    free = bitarray([bit for bit in bits for _ in range(runs)], endian="little")
    free_map = FreeMap(1 << unit_log, data_sectors * SECTOR, free)
    offset = offset_sectors * SECTOR
    length = free_map.data_offset + len(free) * free_map.unit_bytes
    image_map = empty_map(offset + length + tail_sectors * SECTOR, 1 << block_log)
    clear_free_blocks(image_map, free_map, offset, length)
    assert image_map.used == used_by_model(image_map, free_map, offset)


@given(
    block_log=st.integers(9, 13),
    unit_log=st.integers(9, 13),
    offset_sectors=st.integers(0, 40),
    bits=st.lists(st.booleans(), min_size=1, max_size=300),
)
def test_working_in_pieces_makes_no_difference(
    block_log: int, unit_log: int, offset_sectors: int, bits: list[bool]
) -> None:
    free_map = FreeMap(1 << unit_log, 0, bitarray(bits, endian="little"))
    offset, length = offset_sectors * SECTOR, len(bits) << unit_log
    image_map = empty_map(offset + length, 1 << block_log)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fold, "_PIECE_BITS", 32)
        clear_free_blocks(image_map, free_map, offset, length)
    assert image_map.used == used_by_model(image_map, free_map, offset)


@pytest.mark.parametrize("block_bytes", [512, 4096, 1 << 20])
@pytest.mark.parametrize("unit_bytes", [1 << 20, 1 << 25])
def test_large_units(block_bytes: int, unit_bytes: int) -> None:
    free = bitarray("0110", endian="little")
    image_map = empty_map(5 * unit_bytes, block_bytes)
    clear_free_blocks(image_map, FreeMap(unit_bytes, 0, free), unit_bytes, 4 * unit_bytes)
    assert stretches(image_map) == [
        (0, 2 * unit_bytes, True),
        (2 * unit_bytes, 2 * unit_bytes, False),
        (4 * unit_bytes, unit_bytes, True),
    ]


@pytest.mark.parametrize("factor", [1, 2, 4, 8, 16, 64])
def test_folding_undoes_expanding(factor: int) -> None:
    bits = bitarray("1101000111011011001", endian="little")
    assert fold_bits(expand_bits(bits, factor), factor) == bits


def test_units_beyond_the_filesystem_are_refused() -> None:
    free_map = FreeMap(4096, 0, ones(11, "little"))
    image_map = empty_map(1 << 20, 4096)
    with pytest.raises(MapError, match="beyond its end"):
        clear_free_blocks(image_map, free_map, 0, 10 * 4096)
    assert image_map.used.all()


def test_the_last_partial_block_stays_used() -> None:
    image_map = empty_map(3 * 4096 + 512, 4096)
    clear_free_blocks(image_map, FreeMap(512, 0, ones(25, "little")), 0, 25 * 512)
    assert stretches(image_map) == [(0, 3 * 4096, False), (3 * 4096, 512, True)]


def test_units_must_be_powers_of_two() -> None:
    with pytest.raises(MapError, match="no power of two"):
        FreeMap(3000, 0, ones(1, "little"))
