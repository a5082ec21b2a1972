"""What was stored in haste is compressed well when there is time, and nobody who reads notices."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_rig import Rig

from cow.disk.layout import CutCounter
from cow.snapshot import SnapshotReader

BLOCK_BYTES = 4096
BLOCKS = 256
MakeRig = Callable[..., Rig]


def text(blocks: int) -> bytes:
    """Compresses well, and no two blocks are the same."""
    return b"".join(f"block{number:11d}".encode() * (BLOCK_BYTES // 16) for number in range(blocks))


@pytest.fixture
def hasty_rig(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """All blocks preserved and stored raw, because the compactor thought that the ring was full."""
    rig = make_rig(text(BLOCKS), staging_slots=2 * BLOCKS)
    rig.open()
    with monkeypatch.context() as patch:
        patch.setattr("cow.compact.compactor.acceleration_for", lambda share: 0)
        for block_no in range(BLOCKS):
            rig.write(block_no * BLOCK_BYTES, bytes(BLOCK_BYTES))
        rig.compactor.drain()
    return rig


def stored_bytes(rig: Rig) -> int:
    segments = rig.store.cut.segments
    return sum(segments.path(number).stat().st_size for number in segments.numbers())


def squeeze_all(rig: Rig) -> None:
    while rig.compactor.squeeze():
        pass


def test_squeezing_makes_it_small(hasty_rig: Rig) -> None:
    before = stored_bytes(hasty_rig)
    squeeze_all(hasty_rig)
    assert stored_bytes(hasty_rig) < before / 4


def test_the_snapshot_is_the_same_afterwards(hasty_rig: Rig) -> None:
    squeeze_all(hasty_rig)
    assert hasty_rig.snapshot() == text(BLOCKS)


def test_the_numbers_are_those_of_the_new_records(hasty_rig: Rig) -> None:
    squeeze_all(hasty_rig)
    numbers = hasty_rig.numbers
    assert numbers[CutCounter.STORED_RAW_BYTES] == BLOCKS * BLOCK_BYTES
    assert 0 < numbers[CutCounter.STORED_BYTES] < stored_bytes(hasty_rig)


def test_a_reader_with_an_old_entry_looks_again(hasty_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = SnapshotReader(hasty_rig.store, hasty_rig.image)
    index, real = hasty_rig.store.cut.index, hasty_rig.store.cut.index.get_range
    old_entries = real(0, BLOCKS)
    squeeze_all(hasty_rig)
    answers = [old_entries]
    monkeypatch.setattr(index, "get_range", lambda first, end: answers.pop() if answers else real(first, end))
    assert reader.read(0, BLOCKS * BLOCK_BYTES) == text(BLOCKS)


def test_released_blocks_are_not_stored_again(hasty_rig: Rig) -> None:
    hasty_rig.engine.cuts.release(0, BLOCKS)
    squeeze_all(hasty_rig)
    assert stored_bytes(hasty_rig) <= BLOCKS * BLOCK_BYTES * 2
    assert hasty_rig.numbers[CutCounter.STORED_RAW_BYTES] <= BLOCKS * BLOCK_BYTES


def test_killed_half_way_both_places_are_right(hasty_rig: Rig) -> None:
    hasty_rig.compactor.squeeze()
    hasty_rig.abandon()
    hasty_rig.open()
    assert hasty_rig.snapshot() == text(BLOCKS)


def test_a_new_cut_ends_the_squeezing(hasty_rig: Rig) -> None:
    hasty_rig.compactor.squeeze()
    hasty_rig.make_cut()
    assert not hasty_rig.compactor.squeeze()
    assert hasty_rig.snapshot() == bytes(BLOCKS * BLOCK_BYTES)


def test_damage_keeps_the_old_segment(hasty_rig: Rig) -> None:
    path = hasty_rig.store.cut.segments.path(1)
    with path.open("r+b") as file:
        file.seek(200)
        file.write(b"damage")
    squeeze_all(hasty_rig)
    assert path.exists()
