"""Times of parts, whatever is done in whatever order: the same time is the same content."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from dating_rig import (
    BLOCK,
    BLOCKS,
    OLD,
    PART,
    PARTS,
    UsedRig,
    differing,
    finish,
    make_parts_small,
    resume,
    times_of,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from cow.disk.layout import Durability
from cow.disk.times import PartTimes
from cow.live.dating import follow_times
from cow.mount.recovery import Outcome


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    make_parts_small(monkeypatch)


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
