"""Times of parts: the same in two cuts only where both read the same, and the same where nothing happened."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from dating_rig import BLOCK, OLD, PART, PARTS, UsedRig, cut, differing, finish, make_parts_small, resume, times_of
from engine_rig import Rig

from cow.disk import times
from cow.disk.directory import BEGUN_TIMES_NAME, FREE_BEFORE_NAME, TIMES_NAME
from cow.disk.layout import CutCounter
from cow.disk.times import PartTimes
from cow.live import dating
from cow.mount.recovery import Outcome


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    make_parts_small(monkeypatch)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = UsedRig(tmp_path, OLD, block_bytes=BLOCK)
    rig.open()
    resume(rig)
    yield rig
    rig.close()


def test_what_was_written_between_two_cuts_has_the_time_of_the_later(rig: Rig) -> None:
    finish(rig)
    first = times_of(rig)
    rig.write(1 * PART + 10, b"x")
    rig.write(3 * PART, b"y" * PART)
    cut(rig)
    finish(rig)
    second = times_of(rig)
    assert differing(first, second) == [1, 3]
    assert max(first) < second[3] < second[1]
    cut(rig)
    finish(rig)
    assert times_of(rig) == second


def test_no_two_times_are_within_the_same_second_but_of_one_cut(rig: Rig) -> None:
    finish(rig)
    seen = set(times_of(rig))
    for number in range(3):
        rig.write(0, bytes([number]) * len(OLD))
        cut(rig)
        finish(rig)
        now = set(times_of(rig))
        assert len(now) == 2
        assert not {one // 10**9 for one in now} & {one // 10**9 for one in seen}
        seen |= now


def test_what_became_free_or_used_has_changed(rig: Rig) -> None:
    rig.settle_free([(0, 4), (8, 12)])
    finish(rig)
    first = times_of(rig)
    cut(rig)
    rig.settle_free([(0, 4), (16, 17)])
    finish(rig)
    assert differing(first, times_of(rig)) == [2, 4]


def test_a_map_that_failed_is_one_of_nothing(rig: Rig) -> None:
    rig.settle_free([(0, 4)])
    finish(rig)
    first = times_of(rig)
    cut(rig)
    finish(rig)
    second = times_of(rig)
    assert differing(first, second) == [0]
    cut(rig)
    rig.settle_free([(0, 4)])
    finish(rig)
    assert differing(second, times_of(rig)) == [0]
    assert differing(first, times_of(rig)) == [0]


def test_a_map_that_comes_late_makes_the_table_void_until_it_is_made_again(rig: Rig) -> None:
    assert rig.store is not None
    finish(rig)
    first, table = times_of(rig), PartTimes(rig.cut, rig.geometry)
    rig.settle_free([(4, 5)])
    assert not table.is_valid
    table.close()
    with pytest.raises(FileNotFoundError):
        times_of(rig)
    finish(rig)
    assert differing(first, times_of(rig)) == [1]


def test_a_cut_whose_map_was_not_waited_for_has_one_of_nothing(rig: Rig) -> None:
    finish(rig)
    first = times_of(rig)
    cut(rig, "named")
    named = rig.cut.generation
    rig.write(0, b"x")
    cut(rig)
    finish(rig)
    assert times_of(rig, named) == first
    assert differing(first, times_of(rig)) == [0]


def test_a_clock_that_was_set_back_makes_no_time_come_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(rig)
    first = times_of(rig)
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    rig.write(0, b"x" * len(OLD))
    cut(rig)
    assert rig.store is not None
    assert rig.store.header.cut.taken_at_ns == 1
    finish(rig)
    assert min(times_of(rig)) > max(first)


def test_after_an_overflow_all_has_changed(rig: Rig) -> None:
    finish(rig)
    first = times_of(rig)
    assert rig.store is not None
    rig.engine.room.set_limit(BLOCK)
    rig.write(0, b"x" * 8 * BLOCK)
    assert not rig.numbers.is_kept
    rig.engine.room.set_limit(0)
    cut(rig)
    finish(rig)
    assert min(times_of(rig)) > max(first)


def test_after_the_image_was_cut_short_all_has_changed(rig: Rig) -> None:
    rig.numbers[CutCounter.MISSING_BYTES] = 1
    finish(rig)
    first = times_of(rig)
    cut(rig)
    finish(rig)
    assert min(times_of(rig)) > max(first)


def test_after_a_device_was_not_open_all_has_changed(rig: Rig) -> None:
    finish(rig)
    before = times_of(rig)
    assert rig.store is not None
    rig.store.header = replace(rig.store.header, is_device=True)
    resume(rig)
    finish(rig)
    after = times_of(rig)
    assert len(differing(before, after)) == PARTS
    cut(rig)
    finish(rig)
    assert times_of(rig) == after


@pytest.mark.parametrize("name", [TIMES_NAME, BEGUN_TIMES_NAME, FREE_BEFORE_NAME])
@pytest.mark.parametrize("harm", [lambda data: b"", lambda data: data[:-1] + b"x", lambda data: b"x" + data[1:]])
def test_of_what_is_damaged_all_has_changed(rig: Rig, name: str, harm: Callable[[bytes], bytes]) -> None:
    rig.settle_free([(4, 5)])
    finish(rig)
    first = times_of(rig)
    if name == TIMES_NAME:
        spoil(rig.cut.path / name, harm)
        cut(rig)
    else:
        cut(rig)
        spoil(rig.cut.path / name, harm)
    rig.settle_free([(4, 5)])
    finish(rig)
    assert min(times_of(rig)) > max(first)
    assert not (rig.cut.path / BEGUN_TIMES_NAME).exists()
    assert not (rig.cut.path / FREE_BEFORE_NAME).exists()


def spoil(path: Path, harm: Callable[[bytes], bytes]) -> None:
    path.write_bytes(harm(path.read_bytes()))


def test_a_server_that_was_killed_before_the_map_was_known_goes_on(rig: Rig) -> None:
    rig.settle_free([(4, 5)])
    finish(rig)
    first = times_of(rig)
    rig.write(0, b"x")
    cut(rig)
    rig.abandon()
    assert rig.open().outcome is Outcome.CARRIED_ON
    resume(rig)
    with pytest.raises(FileNotFoundError):
        times_of(rig)
    rig.settle_free([(4, 5), (8, 9)])
    finish(rig)
    assert differing(first, times_of(rig)) == [0, 2]


def test_a_server_that_was_killed_right_after_the_cut_goes_on_where_the_one_before_stays(rig: Rig) -> None:
    rig.make_cut("named")
    assert rig.store is not None
    resume(rig)
    finish(rig)
    first = times_of(rig)
    rig.write(PART, b"x")
    rig.make_cut()
    rig.abandon()
    rig.open()
    resume(rig)
    finish(rig)
    assert differing(first, times_of(rig)) == [1]


def test_a_server_that_was_killed_right_after_the_cut_begins_anew_where_the_one_before_is_gone(rig: Rig) -> None:
    finish(rig)
    first = times_of(rig)
    rig.make_cut()
    rig.abandon()
    rig.open()
    resume(rig)
    finish(rig)
    assert min(times_of(rig)) > max(first)


def test_a_table_of_sixteen_tib_is_a_hole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (times, dating):
        monkeypatch.setattr(module, "PART_BYTES", 1 << 20)
    table = times.Times.empty(1 << 24, 1, 2)
    table.by_part[12_345_678] = 7
    table.write(tmp_path / "times", 1 << 24, Rig(tmp_path, OLD).files, durable=False)
    assert os.stat(tmp_path / "times").st_blocks * 512 <= 8 * 4096
