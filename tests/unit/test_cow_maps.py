"""Bitmaps, index, control page and staging ring, each alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cow.disk.bitmaps import Bitmap, bitmap_bytes
from cow.disk.files import Data, Files
from cow.disk.index import Index
from cow.disk.layout import NO_TAG, STAGED, STORED, CutCounter, State
from cow.disk.mapped_file import MappedFile
from cow.disk.numbers import Control, CutNumbers
from cow.disk.staging import Staging, file_bytes, slot_count
from cow.errors import StoreError

FILES = Files()


@pytest.fixture
def bitmap(tmp_path: Path) -> Bitmap:
    return Bitmap(tmp_path / "bits", 100_003, FILES, writable=True, create=True)


def test_a_new_map_is_zeros_and_one_hole(bitmap: Bitmap) -> None:
    assert not bitmap.any_set(0, bitmap.block_count)
    assert bitmap.file.path.stat().st_blocks == 0
    assert list(bitmap.file.data_ranges()) == []


@pytest.mark.parametrize(
    ("first", "end"), [(0, 1), (7, 9), (8, 16), (100_002, 100_003), (32_760, 32_780), (0, 100_003)]
)
def test_setting_a_range_sets_it_and_nothing_else(bitmap: Bitmap, first: int, end: int) -> None:
    bitmap.set_range(first, end)
    assert list(bitmap.set_runs()) == [(first, end)]
    assert bitmap.all_set(first, end)
    assert bitmap.count() == bitmap.count_set(0, bitmap.block_count) == end - first
    assert bitmap.get(first)
    assert not bitmap.any_set(0, first)


def test_runs_alternate(bitmap: Bitmap) -> None:
    bitmap.set_range(3, 5)
    bitmap.set_range(9, 10)
    assert list(bitmap.runs(0, 12)) == [
        (False, 0, 3),
        (True, 3, 5),
        (False, 5, 9),
        (True, 9, 10),
        (False, 10, 12),
    ]
    assert bitmap.clear_runs(4, 12) == [(5, 9), (10, 12)]
    assert list(bitmap.runs(5, 5)) == []


def test_bits_lie_low_first(bitmap: Bitmap) -> None:
    bitmap.set_range(9, 10)
    assert bitmap.file.path.read_bytes()[:3] == b"\0\2\0"


def test_another_process_sees_bits_at_once(bitmap: Bitmap) -> None:
    other = Bitmap(bitmap.file.path, bitmap.block_count, FILES)
    bitmap.set_range(77, 78)
    assert other.get(77)
    other.close()


def test_a_cleared_map_is_a_hole_again(bitmap: Bitmap) -> None:
    bitmap.set_range(0, 50_000)
    bitmap.file.clear()
    assert bitmap.count() == 0
    assert bitmap.file.path.stat().st_blocks == 0
    bitmap.set_range(1, 2)
    assert list(bitmap.set_runs()) == [(1, 2)]
    assert bitmap.file.path.stat().st_blocks > 0


def test_a_map_that_is_carried_on_keeps_what_it_held_when_the_rest_is_allocated(bitmap: Bitmap) -> None:
    pages = bitmap.file.size_bytes // 4096
    for page in range(0, pages, 2):
        bitmap.set_range(page * 32768 + 5, page * 32768 + 7)
    carried_on = Bitmap(bitmap.file.path, bitmap.block_count, FILES, writable=True)
    carried_on.allocate(0, carried_on.block_count)
    assert list(carried_on.set_runs()) == [(page * 32768 + 5, page * 32768 + 7) for page in range(0, pages, 2)]
    assert list(carried_on.file.data_ranges()) == [(0, carried_on.file.size_bytes)]
    carried_on.close()


def test_a_map_that_is_carried_on_and_cut_short_is_not_made_longer(bitmap: Bitmap) -> None:
    carried_on = Bitmap(bitmap.file.path, bitmap.block_count, FILES, writable=True)
    os.truncate(bitmap.file.path, 4096)
    with pytest.raises(OSError, match="cut short"):
        carried_on.allocate(0, carried_on.block_count)
    assert bitmap.file.path.stat().st_size == 4096
    carried_on.close()


def test_a_map_that_is_cut_short_while_it_is_allocated_is_not_made_longer(tmp_path: Path) -> None:
    class CutShort(Files):
        def pwrite(self, fd: int, data: Data, offset: int) -> None:
            super().pwrite(fd, data, offset)
            os.truncate(tmp_path / "bits", 8192)

    bits = 16 * 32768
    Bitmap(tmp_path / "bits", bits, FILES, writable=True, create=True).set_range(5, 6)
    carried_on = Bitmap(tmp_path / "bits", bits, FILES, writable=True)
    for page in range(2, 16, 2):
        carried_on.set_range(page * 32768, page * 32768 + 1)
    carried_on.close()
    carried_on = Bitmap(tmp_path / "bits", bits, CutShort(), writable=True)
    with pytest.raises(OSError, match="cut short"):
        carried_on.allocate(0, bits)
    assert (tmp_path / "bits").stat().st_size == 8192
    assert not carried_on.file.is_whole
    carried_on.close()


def test_a_map_of_another_size_is_refused(tmp_path: Path) -> None:
    MappedFile(tmp_path / "short", 4, FILES, writable=True, create=True).close()
    with pytest.raises(OSError, match="cut short"):
        Bitmap(tmp_path / "short", 100, FILES)


def test_bitmap_bytes() -> None:
    assert [bitmap_bytes(count) for count in (1, 8, 9)] == [1, 1, 2]


@pytest.fixture
def index(tmp_path: Path) -> Index:
    made = Index(tmp_path / "index", 5000, FILES, writable=True, create=True)
    made.allocate(0, 5000)
    return made


def test_staged_entries_count_up(index: Index) -> None:
    index.set_staged(10, 13, 7)
    index.set_staged(20, 21, 3)
    assert index.get_range(9, 14) == [0, STAGED | 7, STAGED | 8, STAGED | 9, 0]
    assert index.get(20) == STAGED | 3


def test_only_the_entry_that_was_moved_is_replaced(index: Index) -> None:
    index.set_staged(0, 4, 10)
    index.set_stored(2, 3, 99)
    index.replace(0, [STAGED | 10, STAGED | 12, STAGED | 12, STAGED | 13], STORED | 5)
    assert index.get_range(0, 4) == [STORED | 5, STAGED | 11, 99, STORED | 5]


def test_filled_runs_show_all_that_is_there(index: Index) -> None:
    index.set_stored(4000, 4002, 8)
    found = {first + at: entry for first, entries in index.filled_runs() for at, entry in enumerate(entries) if entry}
    assert found == {4000: 8, 4001: 8}


def test_numbers_are_shared_and_kept(tmp_path: Path) -> None:
    numbers = CutNumbers(tmp_path / "numbers", FILES, writable=True, create=True)
    reader = CutNumbers(tmp_path / "numbers", FILES)
    numbers[CutCounter.STATE] = State.ACTIVE
    numbers[CutCounter.STORED_BYTES] = (1 << 64) - 1
    assert reader.state is State.ACTIVE
    assert reader.by_name()["stored_bytes"] == (1 << 64) - 1
    numbers.close()
    reader.close()


def test_a_state_that_never_was_stored_is_damage(tmp_path: Path) -> None:
    numbers = CutNumbers(tmp_path / "numbers", FILES, writable=True, create=True)
    numbers[CutCounter.STATE] = 77
    assert numbers.state is State.DAMAGED
    numbers.close()


def test_a_page_without_magic_is_refused(tmp_path: Path) -> None:
    (tmp_path / "control").write_bytes(bytes(4096))
    with pytest.raises(StoreError, match="damaged control page"):
        Control(tmp_path / "control", FILES)


BLOCK = 512


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    made = Staging(tmp_path / "staging", BLOCK, 16, FILES, writable=True, create=True)
    made.allocate()
    return made


def stage(staging: Staging, seq: int, contents: list[bytes], first: int) -> None:
    data = b"".join(contents)
    for view in staging.views(seq, len(contents)):
        view[:] = data[: len(view)]
        data = data[len(view) :]
    staging.fill(1, seq, first, first + len(contents))


@pytest.mark.parametrize("seq", [0, 5, 14, 15, 16, 1000 * 16 + 14])
def test_slots_come_back_whole_also_where_the_ring_wraps(staging: Staging, seq: int) -> None:
    contents = [bytes([number]) * BLOCK for number in range(1, 5)]
    stage(staging, seq, contents, 70)
    raw = memoryview(bytearray(4 * BLOCK))
    staging.read_into(raw, seq)
    assert raw == b"".join(contents)
    assert staging.tags(seq, 4) == [70, 71, 72, 73]


def test_checksums_are_of_each_slot(staging: Staging) -> None:
    stage(staging, 14, [bytes(BLOCK)] * 4, 0)
    assert len(set(staging.checksums(14, 4))) == 4


def test_void_slots_hold_no_block(staging: Staging) -> None:
    stage(staging, 14, [bytes(BLOCK)] * 4, 5)
    staging.void(15, 2)
    assert staging.tags(14, 4) == [5, NO_TAG, NO_TAG, 8]


def test_the_ring_takes_no_space_before_its_first_use(tmp_path: Path) -> None:
    staging = Staging(tmp_path / "staging", 4096, 1024, FILES, writable=True, create=True)
    assert staging.file.path.stat().st_blocks == 0
    assert staging.file.path.stat().st_size == file_bytes(4096, 1024)


@pytest.mark.parametrize(("block_bytes", "slots"), [(4096, 16384), (512, 131072), (1 << 20, 64)])
def test_slot_count(block_bytes: int, slots: int) -> None:
    assert slot_count(block_bytes) == slots
    assert slot_count(block_bytes, 0) == 16
