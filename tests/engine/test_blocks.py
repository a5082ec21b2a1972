"""What explains a block, and the rules of a cut: each kind, its place before the others, and each rule broken."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from engine_rig import QuickFiles, Rig, pattern
from hypothesis import given
from hypothesis import strategies as st

from cow.disk.bitmaps import Bitmap
from cow.disk.blocks import Kind, Run, classify, count_lost, entry_runs
from cow.disk.cut import Cut, open_cut
from cow.disk.header import CutHeader, Header
from cow.disk.layout import (
    LOST_ENTRY,
    SEGMENT_BYTES,
    STAGED,
    STORED,
    Counter,
    CutCounter,
    Durability,
    Place,
    Protect,
    pack_place,
)
from cow.disk.rules import check_ring, check_rules, check_store
from cow.live.cutting import enter_cut

BLOCK_BYTES = 4096
BLOCKS = 64
OLD = pattern(BLOCKS * BLOCK_BYTES)
RECORD = pack_place(Place(3, 64, 96))
MakeRig = Callable[..., Rig]


def made_cut(rig: Rig) -> Cut:
    """A cut whose maps a test fills by itself."""
    rig.open()
    rig.rules.are_kept = False
    return rig.cut


def settle(cut: Cut, first: int, entries: list[int]) -> None:
    for block_no, entry in enumerate(entries, first):
        cut.index.set_stored(block_no, block_no + 1, entry)
    cut.settled.set_range(first, first + len(entries))


def runs_of(cut: Cut, first: int = 0, end: int = BLOCKS) -> list[Run]:
    return list(classify(cut, first, end))


def test_a_block_that_is_not_settled_is_owed_unless_its_readers_do_not_need_it(make_rig: MakeRig) -> None:
    cut = made_cut(make_rig(OLD))
    cut.index.set_stored(3, 4, RECORD)
    cut.released.set_range(5, 6)
    cut.free.set_range(6, 7)
    cut.numbers[CutCounter.FREE_BLOCKS] = 1
    assert runs_of(cut) == [
        (Kind.OWED, 0, 5, 0),
        (Kind.RELEASED, 5, 6, 0),
        (Kind.FREE, 6, 7, 0),
        (Kind.OWED, 7, BLOCKS, 0),
    ]
    assert list(classify(cut, 0, BLOCKS, own=False)) == [(Kind.OWED, 0, BLOCKS, 0)]


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        (STAGED | 9, Kind.STAGED),
        (STAGED, Kind.STAGED),
        (RECORD, Kind.STORED),
        (LOST_ENTRY, Kind.LOST),
        (0, Kind.UNEXPLAINED),
        (77, Kind.UNEXPLAINED),
        (STAGED | STORED | 5, Kind.UNEXPLAINED),
    ],
)
def test_the_entry_of_a_settled_block_explains_it(make_rig: MakeRig, entry: int, kind: Kind) -> None:
    cut = made_cut(make_rig(OLD))
    settle(cut, 3, [entry])
    assert runs_of(cut) == [(Kind.OWED, 0, 3, 0), (kind, 3, 4, entry), (Kind.OWED, 4, BLOCKS, 0)]
    assert count_lost(cut, 0, BLOCKS) == (kind in (Kind.LOST, Kind.UNEXPLAINED))


def test_released_comes_before_free_and_free_before_the_entry(make_rig: MakeRig) -> None:
    cut = made_cut(make_rig(OLD))
    settle(cut, 0, [RECORD] * 3 + [LOST_ENTRY] * 3)
    cut.free.set_range(1, 5)
    cut.released.set_range(2, 4)
    cut.numbers[CutCounter.FREE_BLOCKS] = 4
    assert runs_of(cut, 0, 6) == [
        (Kind.STORED, 0, 1, RECORD),
        (Kind.FREE, 1, 2, 0),
        (Kind.RELEASED, 2, 4, 0),
        (Kind.FREE, 4, 5, 0),
        (Kind.LOST, 5, 6, LOST_ENTRY),
    ]
    assert count_lost(cut, 0, 6) == 1
    assert count_lost(cut, 0, 6, free_counts=False) == 2


def test_the_map_of_free_blocks_counts_for_nothing_until_it_is_known(make_rig: MakeRig) -> None:
    cut = made_cut(make_rig(OLD))
    settle(cut, 0, [RECORD])
    cut.free.set_range(0, 1)
    assert runs_of(cut, 0, 1) == [(Kind.STORED, 0, 1, RECORD)]


def test_a_block_that_is_just_being_settled_as_free_is_free(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(OLD)
    rig.open()

    def settle_and_look(bitmap: Bitmap, first: int, end: int) -> bool:
        monkeypatch.undo()
        rig.settle_free([(0, 8)])
        return bitmap.any_set(first, end)

    monkeypatch.setattr(Bitmap, "any_set", settle_and_look)
    assert runs_of(rig.cut) == [(Kind.FREE, 0, 8, 0), (Kind.OWED, 8, BLOCKS, 0)]


def test_blocks_of_one_record_and_of_slots_in_a_row_are_one_run(make_rig: MakeRig) -> None:
    cut = made_cut(make_rig(OLD))
    settle(cut, 0, [RECORD, RECORD, STAGED | 5, STAGED | 6, STAGED | 6, STAGED | 4, RECORD, 0, 0])
    assert runs_of(cut, 1, 9) == [
        (Kind.STORED, 1, 2, RECORD),
        (Kind.STAGED, 2, 4, STAGED | 5),
        (Kind.STAGED, 4, 5, STAGED | 6),
        (Kind.STAGED, 5, 6, STAGED | 4),
        (Kind.STORED, 6, 7, RECORD),
        (Kind.UNEXPLAINED, 7, 9, 0),
    ]


ENTRIES = st.lists(
    st.sampled_from([0, 7, STAGED, STAGED | 1, STAGED | 2, RECORD, RECORD + 1, LOST_ENTRY]), min_size=1
)


@given(entries=ENTRIES, first=st.integers(0, 99))
def test_runs_of_entries_are_the_entries(entries: list[int], first: int) -> None:
    found, at = [], first
    for kind, low, high, entry in entry_runs(first, entries):
        assert low == at < high
        at = high
        found += [entry + no if kind is Kind.STAGED else entry for no in range(high - low)]
    assert found == entries


def test_a_large_range_is_looked_at_where_anything_is_settled_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 1 << 32
    image = CutHeader(1, 0, 0, 0, 0o600, 0, 0, bytes(16))
    kinds = Durability.PROCESS, Protect.ALL, False
    header = Header(BLOCK_BYTES, count * BLOCK_BYTES, 1, 1, 16, *kinds, bytes(16), bytes(16), "/image", "", (image,))
    cut = open_cut(tmp_path, 1, header, QuickFiles(), writable=True, create=True)
    for first in (5, 70_000, 3_000_000_000):
        settle(cut, first, [RECORD] * 2)
    looked_at = 0
    real = type(cut.settled).any_set

    def any_set(self: object, first: int, end: int) -> bool:
        nonlocal looked_at
        looked_at += end - first
        return real(self, first, end)  # type: ignore[arg-type]

    monkeypatch.setattr(type(cut.settled), "any_set", any_set)
    runs = runs_of(cut, 6, count - 1)
    assert [run for run in runs if run[0] is not Kind.OWED] == [
        (Kind.STORED, 6, 7, RECORD),
        (Kind.STORED, 70_000, 70_002, RECORD),
        (Kind.STORED, 3_000_000_000, 3_000_000_002, RECORD),
    ]
    assert runs[0][1] == 6
    assert runs[-1][2] == count - 1
    assert all(one[2] == other[1] for one, other in pairwise(runs))
    assert looked_at < 1 << 20
    cut.let_go()


# --- the rules -----------------------------------------------------------------------------------------------


def used_rig(make_rig: MakeRig) -> Rig:
    """Blocks 0 to 4 in a record, 10 and 11 in the ring, 20 and 21 released, 30 to 33 free."""
    rig = make_rig(OLD)
    rig.open()
    rig.settle_free([(30, 34)])
    rig.write(0, pattern(5 * BLOCK_BYTES, 2))
    rig.compactor.drain()
    rig.engine.cuts.release(20, 22)
    rig.write(10 * BLOCK_BYTES, pattern(2 * BLOCK_BYTES, 3))
    rig.rules.are_kept = False
    return rig


def broken(rig: Rig, *, at_rest: bool = True) -> list[str]:
    assert rig.store is not None
    return list(check_store(rig.store, at_rest=at_rest))


def test_a_store_that_was_used_breaks_no_rule(make_rig: MakeRig) -> None:
    assert broken(used_rig(make_rig)) == []


def bits_alone(name: str) -> Callable[[Rig], None]:
    return lambda rig: getattr(rig.cut, name).set_range(40, 42)


def entry_at(block_no: int, entry: int) -> Callable[[Rig], None]:
    return lambda rig: rig.cut.index.set_stored(block_no, block_no + 1, entry)


def number(which: CutCounter, value: int) -> Callable[[Rig], None]:
    return lambda rig: rig.numbers.__setitem__(which, value)


OF_ENDS = pack_place(Place(1, SEGMENT_BYTES - 32, 64))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (bits_alone("changed"), "blocks 40 to 41: changed and yet owed"),
        (bits_alone("released"), "blocks 40 to 41: released and yet owed"),
        (bits_alone("free"), "blocks 40 to 41: free and yet owed"),
        (entry_at(40, RECORD), "block 40: preserved and yet owed"),
        (bits_alone("settled"), "blocks 40 to 41: overwritten, and nothing says where the old content is"),
        (entry_at(2, STAGED | STORED), "block 2: overwritten, and nothing says where the old content is"),
        (entry_at(2, STORED | 3), "block 2: stored where no record can be"),
        (entry_at(2, OF_ENDS), "block 2: stored where no record can be"),
        (entry_at(10, STAGED | 900), "block 10: in slots of the ring that hold nothing (900)"),
        (entry_at(2, STAGED), "block 2: in slots of the ring that hold nothing (0)"),
        (entry_at(11, STAGED | 5), "block 11: in slots of the ring that hold other blocks (5)"),
        (number(CutCounter.SETTLED_BLOCKS, 12), "numbers: settled_blocks 12, where the maps have 13"),
        (number(CutCounter.CHANGED_BLOCKS, 8), "numbers: changed_blocks 8, where the maps have 7"),
        (number(CutCounter.RELEASED_BLOCKS, 0), "numbers: released_blocks 0, where the maps have 2"),
        (number(CutCounter.FREE_BLOCKS, 3), "numbers: free_blocks 3, where the maps have 4"),
        (number(CutCounter.PRESERVED_BLOCKS, 9), "numbers: preserved_blocks 9, where the maps have 7"),
        (number(CutCounter.LOST_BLOCKS, 1), "numbers: 1 lost blocks, where the maps have 0"),
    ],
)
def test_each_rule_that_is_broken_is_said(make_rig: MakeRig, spoil: Callable[[Rig], None], sentence: str) -> None:
    rig = used_rig(make_rig)
    spoil(rig)
    assert any(found.startswith(sentence) for found in broken(rig)), broken(rig)


@pytest.mark.parametrize("name", ["changed", "released", "free"])
def test_what_is_between_two_steps_is_wrong_at_rest_only(make_rig: MakeRig, name: str) -> None:
    rig = used_rig(make_rig)
    bits_alone(name)(rig)
    assert broken(rig)
    assert broken(rig, at_rest=False) == []


def test_rules_of_a_part_are_of_its_blocks_alone(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    bits_alone("released")(rig)
    assert list(check_rules(rig.cut, 0, 40)) == list(check_rules(rig.cut, 42, BLOCKS)) == []
    assert list(check_rules(rig.cut, 41, BLOCKS)) == ["block 41: released and yet owed"]


def test_the_ring_cannot_hold_more_than_it_has(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    assert rig.store is not None
    rig.control[Counter.RESERVED_SEQ] = rig.control[Counter.FREED_SEQ] + rig.store.staging.slots + 1
    assert len(list(check_ring(rig.store))) == 1
    rig.control[Counter.RESERVED_SEQ] = rig.control[Counter.COMMITTED_SEQ] - 1
    assert len(list(check_ring(rig.store))) == 1


def test_nothing_is_promised_of_a_snapshot_that_is_over(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    bits_alone("settled")(rig)
    rig.compactor.drain()
    rig.engine.room.set_limit(1)
    rig.engine.write(50 * BLOCK_BYTES, b"no room")
    assert broken(rig) == []


# --- what would cost data is refused -------------------------------------------------------------------------


def test_no_slot_is_reserved_while_more_is_free_than_was_taken(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    rig.control[Counter.FREED_SEQ] = rig.control[Counter.RESERVED_SEQ] + 1
    with pytest.raises(AssertionError, match="are reserved"):
        rig.engine.write(50 * BLOCK_BYTES, b"new")
    assert os.pread(rig.image_fd, 3, 50 * BLOCK_BYTES) == OLD[50 * BLOCK_BYTES :][:3]


def test_a_cut_has_a_generation_of_its_own(make_rig: MakeRig) -> None:
    rig = used_rig(make_rig)
    assert rig.store is not None
    with pytest.raises(AssertionError, match="never used again"):
        enter_cut(rig.store, rig.cut, rig.store.header.cut)


def test_an_entry_is_replaced_by_a_place_in_a_segment_only(make_rig: MakeRig) -> None:
    cut = made_cut(make_rig(OLD))
    settle(cut, 0, [STAGED | 5])
    with pytest.raises(AssertionError, match="moves into a segment"):
        cut.index.replace(0, [STAGED | 5], STAGED | 6)
    with pytest.raises(AssertionError, match="nobody has made"):
        cut.index.replace(0, [0], RECORD)
