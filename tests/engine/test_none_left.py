"""The newest snapshot deleted, and none left: nothing is owed until the next cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_rig import NEXT_BOOT, Rig, pattern

from cow.compact.records import Encoder, RecordWriter
from cow.disk.direct import DirectWriter
from cow.disk.layout import CutCounter, Durability, State
from cow.errors import SnapshotEnded, SnapshotLost
from cow.mount.recovery import Outcome

BLOCK_BYTES = 512
OLD = pattern(64 * BLOCK_BYTES)
MakeRig = Callable[..., Rig]


@pytest.fixture(params=list(Durability))
def rig(make_rig: MakeRig, request: pytest.FixtureRequest) -> Rig:
    return make_rig(OLD, block_bytes=BLOCK_BYTES, durability=request.param, staging_slots=32)


def delete(rig: Rig, generation: int) -> None:
    for gone in rig.engine.cuts.forget(generation):
        gone.let_go()


def test_the_last_one_deleted_is_gone_for_its_readers(rig: Rig) -> None:
    rig.open()
    rig.write(0, pattern(BLOCK_BYTES, 2))
    delete(rig, rig.cut.generation)
    with pytest.raises(SnapshotEnded):
        rig.snapshot()


def test_without_a_snapshot_writes_preserve_nothing(rig: Rig) -> None:
    rig.open()
    delete(rig, rig.cut.generation)
    rig.write(0, pattern(8 * BLOCK_BYTES, 2))
    assert rig.numbers.state is State.NONE
    assert (rig.cut.index.count(), rig.engine.size.shown().stored_bytes) == (0, 0)


def test_the_room_of_the_last_one_comes_back(rig: Rig) -> None:
    rig.open()
    rig.write(0, pattern(16 * BLOCK_BYTES, 2))
    rig.compactor.drain()
    rig.write(16 * BLOCK_BYTES, pattern(4 * BLOCK_BYTES, 2))
    delete(rig, rig.cut.generation)
    rig.compactor.drain()
    rig.compactor.tidy()
    assert list((rig.store_path / "segments").iterdir()) == []
    assert rig.engine.size.ring_is_empty


def test_what_the_last_one_had_is_shown_no_more(rig: Rig) -> None:
    rig.open()
    rig.write(0, pattern(16 * BLOCK_BYTES, 2))
    rig.compactor.drain()
    delete(rig, rig.cut.generation)
    shown = rig.engine.size.shown()
    assert (shown.raw_bytes, shown.stored_bytes, shown.staged_bytes) == (0, 0, 0)


def test_a_cut_after_none_is_of_its_own_instant(rig: Rig) -> None:
    rig.open()
    delete(rig, rig.cut.generation)
    rig.write(0, pattern(8 * BLOCK_BYTES, 2))
    expected = rig.live()
    rig.make_cut()
    rig.write(0, pattern(16 * BLOCK_BYTES, 3))
    assert rig.snapshot() == expected
    assert rig.store is not None
    assert len(rig.store.header.cuts) == 1


def test_a_lost_one_stays_what_it_is_when_an_older_one_is_deleted(rig: Rig) -> None:
    rig.open()
    rig.make_cut("older")
    older = rig.cut.generation
    rig.make_cut("newest")
    rig.engine.room.set_limit(BLOCK_BYTES)
    rig.write(0, pattern(8 * BLOCK_BYTES, 2))
    delete(rig, older)
    assert rig.numbers.state is State.OVERFLOWED
    with pytest.raises(SnapshotLost, match="overflowed"):
        rig.snapshot()


def test_deleting_it_twice_says_that_it_is_over(rig: Rig) -> None:
    rig.open()
    delete(rig, rig.cut.generation)
    with pytest.raises(SnapshotEnded):
        rig.engine.cuts.forget(rig.cut.generation)


def test_the_newest_deleted_older_ones_read_through_it(rig: Rig) -> None:
    rig.open()
    rig.make_cut("a")
    reader, expected = rig.reader, rig.live()
    rig.write(0, pattern(8 * BLOCK_BYTES, 2))
    rig.make_cut()
    rig.write(4 * BLOCK_BYTES, pattern(8 * BLOCK_BYTES, 3))
    delete(rig, rig.cut.generation)
    rig.write(10 * BLOCK_BYTES, pattern(8 * BLOCK_BYTES, 4))
    assert reader.read(0, len(OLD)) == expected


def test_the_newest_deleted_is_merged_after_the_next_cut(rig: Rig) -> None:
    rig.open()
    rig.make_cut("a")
    reader, expected = rig.reader, rig.live()
    rig.make_cut("b")
    rig.write(4 * BLOCK_BYTES, pattern(8 * BLOCK_BYTES, 3))
    delete(rig, rig.cut.generation)
    rig.make_cut("c")
    rig.write(0, pattern(8 * BLOCK_BYTES, 4))
    rig.compactor.drain()
    merged = rig.engine.cuts.merge()
    assert merged is not None
    merged.let_go()
    assert rig.store is not None
    assert [one.name for one in rig.store.header.cuts] == ["a", "c"]
    assert reader.read(0, len(OLD)) == expected


def test_all_deleted_newest_first_nothing_is_owed(rig: Rig) -> None:
    rig.open()
    rig.make_cut("a")
    first = rig.cut.generation
    rig.make_cut("b")
    delete(rig, rig.cut.generation)
    delete(rig, first)
    rig.write(0, pattern(8 * BLOCK_BYTES, 3))
    assert rig.cut.index.count() == 0
    assert rig.store is not None
    assert len(rig.store.header.cuts) == 1


@pytest.mark.parametrize("is_sealed", [True, False])
@pytest.mark.parametrize("boot", ["same", "next"])
def test_a_store_that_was_left_without_one_begins_anew(rig: Rig, boot: str, is_sealed: bool) -> None:
    rig.open()
    boot_id = rig.store.header.boot_id if boot == "same" and rig.store is not None else NEXT_BOOT
    delete(rig, rig.cut.generation)
    rig.write(0, pattern(8 * BLOCK_BYTES, 2))
    live = rig.live()
    if is_sealed:
        rig.seal()
    else:
        rig.abandon()
    assert rig.open(boot_id).outcome is Outcome.NEW
    rig.write(0, pattern(16 * BLOCK_BYTES, 3))
    assert rig.snapshot() == live


def test_a_new_store_may_begin_without_one(rig: Rig) -> None:
    rig.takes_snapshot = False
    rig.open()
    assert rig.store is not None
    assert rig.store.header.shown == ()
    rig.write(0, pattern(8 * BLOCK_BYTES, 2))
    assert rig.cut.index.count() == 0
    expected = rig.live()
    rig.make_cut()
    rig.write(0, pattern(8 * BLOCK_BYTES, 3))
    assert rig.snapshot() == expected


def test_clearing_up_after_a_lost_snapshot_spares_a_later_one(rig: Rig) -> None:
    rig.open()
    records = RecordWriter(rig.store, rig.cut, Encoder(), DirectWriter(rig.files))  # type: ignore[arg-type]
    rig.numbers[CutCounter.STATE] = State.OVERFLOWED
    rig.make_cut()
    rig.write(0, pattern(8 * BLOCK_BYTES, 2))
    rig.compactor.drain()
    segments = sorted((rig.store_path / "segments").iterdir())
    records.remove_all()
    assert sorted((rig.store_path / "segments").iterdir()) == segments != []
