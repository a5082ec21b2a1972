"""What may be done to a chain of snapshots, in whatever order: after each step all is compared with what is right."""

from __future__ import annotations

import pytest
from chain_comparison import Comparison
from chain_right import BLOCK_BYTES, BLOCKS, OLD, Right
from chain_subject import Subject
from engine_rig import pattern
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from cow.disk.filesystems import Storing
from cow.disk.layout import Durability, State
from cow.errors import BlockReleased
from cow.holes import between
from cow.live.overflow import OverflowPolicy
from cow.live.reverting import Revert
from cow.mount.recovery import Outcome

MAX_SNAPSHOTS = 6
# In blocks; 0 is none, and the last is never reached.
LIMITS = [0, 4, 10, 20, 40, 1 << 20]

HOLDERS = ["a" * 32, "b" * 32]

BLOCK = st.integers(0, BLOCKS - 1)
RUN = st.tuples(BLOCK, st.integers(1, 12)).map(lambda run: (run[0], min(BLOCKS, sum(run))))


class Stopped(Exception):
    """A revert is not wanted any more."""


class ChainMachine(RuleBasedStateMachine):
    """The snapshots by generation, oldest first, are compared with what they have to be after each step."""

    durability = Durability.PROCESS
    storing = Storing.MAPPED

    @initialize(
        policy=st.sampled_from([OverflowPolicy.BREAK_SNAPSHOT, OverflowPolicy.BREAK_OLDEST]),
        takes_snapshot=st.sampled_from([True] * 7 + [False]),
        chain=st.lists(st.integers(1, 1 << 20), max_size=5),
    )
    def begin(self, policy: OverflowPolicy, takes_snapshot: bool, chain: list[int]) -> None:
        """With a chain of snapshots, before each of which this was written."""
        self.subject = Subject(self.durability, self.storing, policy, takes_snapshot=takes_snapshot)
        self.rig = self.subject.rig
        self.right = Right()
        self.comparison = Comparison(self.rig, self.right)
        assert self._open() is Outcome.NEW
        self.right.begin_anew(takes_snapshot=self.rig.takes_snapshot)
        for seed in chain:
            self.write(seed % BLOCKS, 0, 6 * BLOCK_BYTES, seed)
            self.cut(is_named=True)

    def _open(self) -> Outcome:
        self.limit_bytes = 0
        return self.subject.open(has_lost=self.right.has_lost)

    @property
    def is_newest_shown(self) -> bool:
        return self.rig.cut.generation in self.right.snapshots

    # --- steps -----------------------------------------------------------------------------------------------

    @rule(
        first=BLOCK, shift=st.sampled_from([0, 0, 1, 40]), length=st.integers(1, 6 * BLOCK_BYTES), seed=st.integers(1)
    )
    def write(self, first: int, shift: int, length: int, seed: int) -> None:
        offset = first * BLOCK_BYTES + shift
        end = min(offset + length, len(OLD))
        if end > self.right.shortest:
            with pytest.raises(OSError, match="cut short"):
                self.rig.engine.write(end - 1, b"x")
            end = self.right.shortest
            self._see_overflow()
        if offset >= end:
            return
        data, blocks = (
            pattern(end - offset, seed % (1 << 20)),
            set(range(*self.rig.geometry.span(offset, end - offset))),
        )
        bad = blocks & self.subject.bad
        self.rig.write(offset, data)
        self._see_overflow()
        self.right.write(offset, data, blocks, bad)

    @rule(
        first=BLOCK, shift=st.sampled_from([0, 0, 1, 40]), length=st.integers(1, 6 * BLOCK_BYTES), gives=st.booleans()
    )
    def zero(self, first: int, shift: int, length: int, gives: bool) -> None:
        """A discard: of what is a hole already nothing is replaced."""
        offset = first * BLOCK_BYTES + shift
        end = min(offset + length, self.right.shortest)
        if offset >= end:
            return
        data = list(between(list(self.rig.image.holes(offset, end)), offset, end))
        blocks = {block for start, stop in data for block in range(*self.rig.geometry.span(start, stop - start))}
        bad = blocks & self.subject.bad
        self.rig.compactor.drain()
        self.rig.engine.zero(offset, end - offset, give_back=gives)
        self._see_overflow()
        self.right.write(offset, bytes(end - offset), blocks, bad)

    def _see_overflow(self) -> None:
        """Who had to give way, and none that had not."""
        assert self.rig.store is not None
        states = {cut.generation: cut.numbers.state for cut in self.rig.store.cuts}
        lost = self.right.overflow(
            {one for one, state in states.items() if state is State.OVERFLOWED}, self.rig.policy
        )
        if lost:
            assert 0 < self.limit_bytes < LIMITS[-1] * BLOCK_BYTES

    @precondition(lambda self: self.right.snapshots or self.right.checkpoints)
    @rule(data=st.data(), holder=st.sampled_from(HOLDERS))
    def hold(self, data: st.DataObject, holder: str) -> None:
        """Any that is there, or held already."""
        generation = data.draw(st.sampled_from(sorted({*self.right.snapshots, *self.right.checkpoints})))
        self.rig.engine.cuts.hold_checkpoint(self.subject.id_of(generation), holder)
        self.right.hold(generation, holder)

    hold_more = hold

    @rule(data=st.data(), holder=st.sampled_from(HOLDERS))
    def let_go(self, data: st.DataObject, holder: str) -> None:
        """All of a holder, but some."""
        kept = (
            data.draw(st.sets(st.sampled_from(sorted(self.right.checkpoints)))) if self.right.checkpoints else set()
        )
        for gone in self.rig.engine.cuts.let_go_checkpoints(holder, [self.subject.id_of(one) for one in kept]):
            gone.let_go()
        self.right.let_go(holder, kept)

    @rule(is_named=st.booleans() | st.just(True))
    def cut(self, is_named: bool) -> None:
        if self.right.is_short:
            with pytest.raises(OSError, match="cut short"):
                self.rig.make_cut("refused")
            return
        newest = self.rig.cut.generation
        is_named = is_named and len(self.right.snapshots) < MAX_SNAPSHOTS
        self.rig.make_cut(f"n{self.rig.cut.generation}" if is_named else "")
        if newest in self.right.snapshots and newest not in self.right.named:
            self._forget(newest)
        self.right.cut(self.rig.cut.generation, is_named=is_named)

    @precondition(lambda self: len(self.right.snapshots) > 1)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self._delete(data.draw(st.sampled_from(sorted(self.right.snapshots))))

    @precondition(lambda self: self.right.snapshots)
    @rule(all_of_them=st.integers(0, 5))
    def delete_newest(self, all_of_them: int) -> None:
        generations = sorted(self.right.snapshots)
        for generation in reversed(generations if not all_of_them else generations[1:][-1:]):
            self._delete(generation)

    def _delete(self, generation: int) -> None:
        for gone in self.rig.engine.cuts.forget(generation):
            gone.let_go()
        self._forget(generation)

    def _forget(self, generation: int) -> None:
        del self.right.snapshots[generation]
        self.comparison.forget(generation)

    # More of these than of others.
    write_more = write_again = write
    cut_more = cut_again = cut

    @rule(drains=st.booleans() | st.just(True))
    def merge(self, drains: bool) -> None:
        if drains:
            self.rig.compactor.drain()
        gone = self.rig.engine.cuts.merge()
        if gone is not None:
            gone.let_go()

    merge_more = merge

    @rule()
    def compact(self) -> None:
        self.rig.compactor.step()

    @rule()
    def compact_all(self) -> None:
        self.rig.compactor.drain()
        self.rig.compactor.squeeze()
        self.rig.compactor.give_back()
        self.rig.compactor.tidy()

    @precondition(lambda self: self.rig.cut.generation not in self.right.mapped)
    @rule(run=RUN)
    def learn_what_is_free(self, run: tuple[int, int]) -> None:
        """The map of the newest is known, be it deleted by now; once for each."""
        self.rig.settle_free([run])
        generation = self.rig.cut.generation
        self.right.mapped.add(generation)
        if self.is_newest_shown:
            self.right.snapshots[generation].free = set(range(*run))

    @precondition(lambda self: self.right.snapshots)
    @rule(run=RUN, data=st.data())
    def release(self, run: tuple[int, int], data: st.DataObject) -> None:
        """Of any, most often the newest."""
        generations = sorted(self.right.snapshots)
        generation = data.draw(st.sampled_from([*generations, *generations[-1:] * 3]))
        assert self.rig.store is not None
        cut = next(cut for cut in self.rig.store.cuts if cut.generation == generation)
        if not self.right.snapshots[generation].is_over:
            self.rig.engine.cuts.release(*run, cut)
            self.right.snapshots[generation].released |= set(range(*run))

    @rule(blocks=st.sampled_from(LIMITS))
    def limit(self, blocks: int) -> None:
        self.limit_bytes = blocks * BLOCK_BYTES
        self.rig.engine.room.set_limit(self.limit_bytes)

    @rule()
    def settle_again(self) -> None:
        self.rig.engine.cuts.settle_again()

    # What was cut off gives no bytes before the next cut, also when it is there again.
    @precondition(
        lambda self: (
            self.right.snapshots and not (self.limit_bytes or self.right.shortest < len(OLD) or self.subject.bad)
        )
    )
    @rule(data=st.data(), pieces=st.integers(0, 7) | st.just(BLOCKS))
    def revert(self, data: st.DataObject, pieces: int) -> None:
        """To any, but not if it takes more pieces; then it is noted, and what comes next comes to a mixture."""
        generation = data.draw(st.sampled_from(sorted(self.right.snapshots)))
        target = self.right.snapshots[generation]
        if target.is_over or target.lost:
            return

        def check_wanted() -> None:
            nonlocal pieces
            self.rig.compactor.drain()
            pieces -= 1
            if pieces < 0:
                raise Stopped

        assert self.rig.store is not None
        work = Revert(self.rig.store, self.rig.engine, generation, self.rig.new_reader(generation).read_into)
        expected = self.right.reverted(target, self.rig.geometry)
        try:
            work.run(check_wanted)
        except BlockReleased:
            assert target.released
        except Stopped:
            expected = self.rig.live()
        assert self.rig.live() == (self.right.image if target.released else expected)
        is_refused = bool(target.released)
        self.right.revert(self.rig.live(), expected, self.rig.geometry, is_refused=is_refused)

    @rule(block_no=BLOCK)
    def spoil(self, block_no: int) -> None:
        self.subject.bad.add(block_no)

    @precondition(lambda self: not self.right.is_short)
    @rule(length=st.integers(1, len(OLD)), stays=st.booleans())
    def cut_image_short(self, length: int, stays: bool) -> None:
        length = max(1, len(OLD) - length)
        self.subject.resize_image(length)
        self.rig.image.look()
        self.right.cut_short(length, self.rig.cut.generation)
        if not stays:
            self.make_image_whole()

    @precondition(lambda self: self.right.is_short)
    @rule()
    def make_image_whole(self) -> None:
        self.subject.resize_image(len(OLD))
        self.right.is_short = False

    @rule(end=st.integers(0, 9).map(lambda number: ["clean", "kill", "power"][min(number // 4, 2)]))
    def stop(self, end: str) -> None:
        """A clean end, a kill, or the loss of power, in which nothing was lost."""
        if self.right.is_short:
            self.make_image_whole()
        self.comparison.stop()
        self.subject.stop(end)
        outcome = self._open()
        if not self.right.snapshots and not self.right.checkpoints:
            assert outcome is Outcome.NEW
        elif end == "power" and self.durability is Durability.PROCESS:
            assert outcome is Outcome.LOST
        else:
            assert outcome is Outcome.CARRIED_ON
        if outcome is not Outcome.CARRIED_ON:
            self.right.begin_anew(takes_snapshot=self.rig.takes_snapshot)

    # --- what is right ---------------------------------------------------------------------------------------

    @invariant()
    def check(self) -> None:
        self.comparison.look()

    @rule()
    def read_anew(self) -> None:
        """Readers that begin now."""
        self.comparison.read_anew()

    def teardown(self) -> None:
        if hasattr(self, "subject"):
            self.subject.close()


class DurableChainMachine(ChainMachine):
    durability = Durability.POWER


class WrittenChainMachine(ChainMachine):
    storing = Storing.WRITTEN


class DurableWrittenChainMachine(ChainMachine):
    durability = Durability.POWER
    storing = Storing.WRITTEN


MACHINES = [ChainMachine, DurableChainMachine, WrittenChainMachine, DurableWrittenChainMachine]
