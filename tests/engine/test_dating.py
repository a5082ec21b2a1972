"""Times of parts: the same in two cuts only where both read the same, and the same where nothing happened."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from engine_rig import BOOT, Rig, pattern
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from cow.disk import times
from cow.disk.directory import BEGUN_TIMES_NAME, FREE_BEFORE_NAME, TIMES_NAME
from cow.disk.layout import CutCounter, Durability, Protect
from cow.disk.times import PartTimes
from cow.live import dating
from cow.live.dating import finish_times, follow_times, resume_times
from cow.mount.recovery import Outcome, Request

BLOCK = 512
PART = 4 * BLOCK
PARTS = 6
OLD = pattern(PARTS * PART - 100)
BLOCKS = -(-len(OLD) // BLOCK)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (times, dating):
        monkeypatch.setattr(module, "PART_BYTES", PART)


class UsedRig(Rig):
    """Free blocks read as zeros, once they are known."""

    def request(self, boot_id: bytes = BOOT) -> Request:
        return replace(super().request(boot_id), protect=Protect.USED)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = UsedRig(tmp_path, OLD, block_bytes=BLOCK)
    rig.open()
    resume(rig)
    yield rig
    rig.close()


def resume(rig: Rig) -> None:
    assert rig.store is not None
    resume_times(rig.store)


def finish(rig: Rig) -> None:
    assert rig.store is not None
    finish_times(rig.store, rig.cut)


def cut(rig: Rig, name: str = "") -> None:
    """The next one, and its table as far as it can be made without a map."""
    assert rig.store is not None
    before = rig.store.hold_cut()
    rig.make_cut(name)
    follow_times(rig.store, rig.cut, before)
    before.let_go()


def times_of(rig: Rig, generation: int | None = None) -> list[int]:
    """Of all parts, in a cut, the present one without a `generation`."""
    assert rig.store is not None
    one = next(one for one in rig.store.cuts if one.generation == (generation or rig.cut.generation))
    table = PartTimes(one, rig.geometry)
    try:
        assert table.is_valid
        return [table.changed_ns(at, min(PART, len(OLD) - at)) for at in range(0, len(OLD), PART)]
    finally:
        table.close()


def differing(one: list[int], other: list[int]) -> list[int]:
    return [part for part in range(PARTS) if one[part] != other[part]]


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


# --- any order -----------------------------------------------------------------------------------------------

RUN = st.tuples(st.integers(0, BLOCKS - 1), st.integers(1, 9)).map(lambda run: (run[0], min(BLOCKS, sum(run))))


class DatingMachine(RuleBasedStateMachine):
    """A part with the same time has been read as the same, whenever that was; one to which nothing happened has kept
    its time. Whatever happens to the chain, and whoever is killed."""

    durability = Durability.PROCESS

    @initialize()
    def begin(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="dating-model-"))
        self.rig = UsedRig(self.directory, OLD, block_bytes=BLOCK, durability=self.durability)
        self.rig.open()
        resume(self.rig)
        self.image, self.read = bytearray(OLD), bytes(OLD)
        self.seen: dict[tuple[int, int], bytes] = {}
        # What the last table had, and the blocks that were free by it.
        self.last: list[int] = [0] * PARTS
        self.last_free: set[int] = set()
        # What may differ from it; None: all. What was written since the cut.
        self.touched: set[int] | None = None
        self.written: set[int] = set()
        self.free: set[int] = set()
        self.is_dated, self.named = False, list[int]()

    @rule(run=RUN, seed=st.integers(0, 255))
    def write(self, run: tuple[int, int], seed: int) -> None:
        offset, length = self.rig.geometry.extent(*run)
        self.rig.write(offset, bytes([seed]) * length)
        self.image[offset : offset + length] = bytes([seed]) * length
        self.written |= set(range(*run))

    @precondition(lambda self: not self.free)
    @rule(runs=st.lists(RUN, min_size=1, max_size=3))
    def know_map(self, runs: list[tuple[int, int]]) -> None:
        """Also late: when there is a table without it."""
        self.rig.settle_free(runs)
        content = bytearray(self.read)
        for run in runs:
            offset, length = self.rig.geometry.extent(*run)
            content[offset : offset + length] = bytes(length)
            self.free |= set(range(*run))
        self.read = bytes(content)
        if self.is_dated:
            self.touched, self.is_dated = set(), False

    @precondition(lambda self: not self.is_dated and self.rig.numbers.is_kept)
    @rule()
    def date(self) -> None:
        finish(self.rig)
        self._look(times_of(self.rig))

    def _look(self, now: list[int]) -> None:
        assert bytes(self.rig.reader.read(0, len(OLD))) == self.read if self._is_shown else True
        for part, time_ns in enumerate(now):
            data = self.read[part * PART : (part + 1) * PART]
            assert self.seen.setdefault((part, time_ns), data) == data
        if self.touched is not None:
            touched = self.touched | self.free ^ self.last_free
            assert set(differing(self.last, now)) <= {block * BLOCK // PART for block in touched}
        self.last, self.last_free, self.is_dated = now, set(self.free), True

    @property
    def _is_shown(self) -> bool:
        assert self.rig.store is not None
        return not self.rig.store.header.cut.is_hidden

    @rule(is_named=st.booleans(), is_killed=st.sampled_from([False] * 4 + [True]))
    def cut(self, is_named: bool, is_killed: bool) -> None:
        """Killed between the cut and what is to be done for its times."""
        store = self.rig.store
        assert store is not None
        before, is_kept = store.hold_cut(), self.rig.numbers.is_kept
        is_named = is_named and len(self.named) < 4
        self.rig.make_cut(f"n{before.generation}" if is_named else "")
        if is_killed:
            before.let_go()
            self._reopen()
            # Where the one before is gone, it begins anew.
            is_kept = False
        else:
            follow_times(store, self.rig.cut, before)
            if is_kept and not self.is_dated:
                table = PartTimes(before, self.rig.geometry)
                now = [table.changed_ns(at, min(PART, len(OLD) - at)) for at in range(0, len(OLD), PART)]
                table.close()
                before.let_go()
                self._look_before(now)
            else:
                before.let_go()
        self.touched = self.written if is_kept else None
        self.written, self.free, self.is_dated, self.read = set(), set(), False, bytes(self.image)
        if is_named:
            self.named.append(self.rig.cut.generation)

    cut_again = cut

    def _look_before(self, now: list[int]) -> None:
        for part, time_ns in enumerate(now):
            data = self.read[part * PART : (part + 1) * PART]
            assert self.seen.setdefault((part, time_ns), data) == data
        self.last, self.last_free = now, set(self.free)

    @rule()
    def kill(self) -> None:
        self._reopen()

    def _reopen(self) -> None:
        shown = self._is_shown
        self.rig.abandon()
        outcome = self.rig.open().outcome
        resume(self.rig)
        if outcome is not Outcome.CARRIED_ON:
            assert not shown
            self.named, self.touched, self.written, self.free = [], None, set(), set()
            self.read, self.is_dated = bytes(self.image), False

    @precondition(lambda self: self.named)
    @rule(data=st.data(), merges=st.booleans())
    def delete(self, data: st.DataObject, merges: bool) -> None:
        generation = data.draw(st.sampled_from(self.named))
        self.named.remove(generation)
        for gone in self.rig.engine.cuts.forget(generation):
            gone.let_go()
        self.rig.compactor.drain()
        if merges and (merged := self.rig.engine.cuts.merge()) is not None:
            merged.let_go()

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.remove()


def test_the_same_time_is_the_same_content() -> None:
    run_state_machine_as_test(
        DatingMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )
