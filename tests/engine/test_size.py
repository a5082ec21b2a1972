"""The size of the side buffer: staged, stored and promised bytes, and when they are over the limit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_rig import Rig

from cow.disk.cut import Cut
from cow.disk.layout import Counter, CutCounter
from cow.disk.numbers import CutNumbers, Page
from cow.live.merging import count_merged
from cow.live.size import BufferSize, Shown

BLOCK_BYTES = 4096
MakeRig = Callable[..., Rig]


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    """Two blocks staged; six stored to half their size, of which one was given back."""
    rig = make_rig(bytes(64 * BLOCK_BYTES))
    rig.open()
    first = rig.control[Counter.RESERVED_SEQ]
    rig.control[Counter.FREED_SEQ] = first
    rig.control[Counter.RESERVED_SEQ] = first + 2
    rig.numbers[CutCounter.STORED_BYTES] = 3 * BLOCK_BYTES
    rig.numbers[CutCounter.STORED_RAW_BYTES] = 6 * BLOCK_BYTES
    rig.numbers[CutCounter.RETURNED_BYTES] = BLOCK_BYTES // 2
    return rig


@pytest.fixture
def size(rig: Rig) -> BufferSize:
    return BufferSize(rig.store)


def test_people_see_what_is_staged_and_what_is_stored(size: BufferSize) -> None:
    assert size.shown() == Shown(8 * BLOCK_BYTES, 9 * BLOCK_BYTES // 2, 2 * BLOCK_BYTES)


def test_without_a_limit_there_is_always_room(size: BufferSize) -> None:
    assert not size.over_limit(1 << 60)


def test_the_limit_is_reached_to_the_byte(rig: Rig, size: BufferSize) -> None:
    rig.control[Counter.LIMIT_BYTES] = 5 * BLOCK_BYTES
    assert [size.over_limit(BLOCK_BYTES // 2 + more) for more in (0, 1)] == [False, True]


def test_what_is_promised_counts(rig: Rig, size: BufferSize) -> None:
    rig.control[Counter.LIMIT_BYTES] = 5 * BLOCK_BYTES
    size.promised_bytes = BLOCK_BYTES
    assert size.over_limit(0)


def test_the_share_of_the_limit_expects_of_staged_blocks_what_others_did(rig: Rig, size: BufferSize) -> None:
    rig.control[Counter.LIMIT_BYTES] = 7 * BLOCK_BYTES
    assert size.percent_of(rig.control[Counter.LIMIT_BYTES]) == 50


def test_slots_of_the_cut_before_do_not_count(rig: Rig, size: BufferSize) -> None:
    rig.numbers[CutCounter.FIRST_SEQ] = rig.control[Counter.RESERVED_SEQ] - 1
    assert size.staged_bytes() == BLOCK_BYTES
    assert not size.ring_is_empty


def test_more_given_back_than_is_counted_yet_is_nothing(rig: Rig, size: BufferSize) -> None:
    rig.numbers[CutCounter.RETURNED_BYTES] = 4 * BLOCK_BYTES
    assert size.shown().stored_bytes == size.staged_bytes()


@pytest.fixture
def older(rig: Rig, size: BufferSize) -> CutNumbers:
    """Of the first of three cuts, whose slots are freed; it has stored three blocks, and the limit is ten. Looked at
    once, when there was room."""
    rig.rules.are_kept = False
    rig.control[Counter.RESERVED_SEQ] = rig.control[Counter.FREED_SEQ]
    rig.make_cut("a")
    numbers = rig.numbers
    numbers[CutCounter.STORED_BYTES] = 3 * BLOCK_BYTES
    for name in "bc":
        rig.make_cut(name)
    rig.control[Counter.LIMIT_BYTES] = 10 * BLOCK_BYTES
    assert not size.over_limit(7 * BLOCK_BYTES)
    return numbers


def test_older_cuts_are_looked_at_once_as_long_as_there_is_room(
    size: BufferSize, older: CutNumbers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(size, "_look_at_older", None)
    assert not size.over_limit(7 * BLOCK_BYTES)
    assert size.percent_of(10 * BLOCK_BYTES) == 30


def test_what_older_cuts_gave_back_is_room(size: BufferSize, older: CutNumbers) -> None:
    older[CutCounter.RETURNED_BYTES] = 2 * BLOCK_BYTES
    assert [size.over_limit(9 * BLOCK_BYTES + more) for more in (0, 1)] == [False, True]


def test_what_the_compactor_moved_since_the_last_look_is_not_missed(
    rig: Rig, size: BufferSize, older: CutNumbers
) -> None:
    for name, moved in (("d", 4), ("e", 0)):
        # Staged for the cut before, which is older from here on.
        rig.control[Counter.RESERVED_SEQ] += moved
        before = rig.numbers
        rig.make_cut(name)
        assert not size.over_limit(3 * BLOCK_BYTES)
        before[CutCounter.STORED_BYTES] = moved * BLOCK_BYTES
        rig.control[Counter.FREED_SEQ] = rig.control[Counter.RESERVED_SEQ]
        assert [size.over_limit(3 * BLOCK_BYTES + more) for more in (0, 1)] == [False, True]


def test_the_share_of_the_limit_counts_what_the_compactor_moved(
    rig: Rig, size: BufferSize, older: CutNumbers
) -> None:
    rig.control[Counter.RESERVED_SEQ] += 4
    before = rig.numbers
    rig.make_cut("d")
    assert size.percent_of(10 * BLOCK_BYTES) == 70
    before[CutCounter.STORED_BYTES] = BLOCK_BYTES
    rig.control[Counter.FREED_SEQ] = rig.control[Counter.RESERVED_SEQ]
    assert size.percent_of(10 * BLOCK_BYTES) == 40


def test_what_is_stored_by_another_cut_after_the_last_look_counts(
    rig: Rig, size: BufferSize, older: CutNumbers
) -> None:
    rig.numbers[CutCounter.STORED_BYTES] = 2 * BLOCK_BYTES
    assert [size.over_limit(5 * BLOCK_BYTES + more) for more in (0, 1)] == [False, True]


def test_what_a_merge_counts_is_not_missed(rig: Rig, older: CutNumbers, monkeypatch: pytest.MonkeyPatch) -> None:
    size = rig.engine.size

    def look_and_count(older: Cut, cut: Cut) -> None:
        assert not size.over_limit(3 * BLOCK_BYTES)
        count_merged(older, cut)

    monkeypatch.setattr("cow.live.chain.count_merged", look_and_count)
    assert rig.store is not None
    rig.engine.cuts.forget(rig.store.older[1].generation)
    rig.store.older[1].numbers[CutCounter.STORED_BYTES] = 4 * BLOCK_BYTES
    rig.compactor.give_back()  # it knows the list by now
    merged = rig.engine.cuts.merge()
    assert merged is not None
    merged.let_go()
    assert [size.over_limit(3 * BLOCK_BYTES + more) for more in (0, 1)] == [False, True]


def test_a_step_that_ends_while_one_looks_is_not_missed(
    rig: Rig, size: BufferSize, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is moved here; the numbers say so all the same.
    rig.rules.are_kept = False
    rig.control[Counter.LIMIT_BYTES] = 9 * BLOCK_BYTES // 2
    watched = {(rig.control, Counter.FREED_SEQ), (rig.numbers, CutCounter.STORED_BYTES)}
    look = Page.__getitem__

    def look_and_step(page: Page, place: int) -> int:
        value = look(page, place)
        if (page, place) in watched:
            watched.clear()
            # Two blocks that did not compress.
            rig.numbers[CutCounter.STORED_BYTES] += 2 * BLOCK_BYTES
            rig.control[Counter.FREED_SEQ] = rig.control[Counter.RESERVED_SEQ]
        return value

    monkeypatch.setattr(Page, "__getitem__", look_and_step)
    assert size.over_limit(1)
