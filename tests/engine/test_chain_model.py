"""A chain of snapshots against a list of byte arrays, whatever is done to it in whatever order."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import pytest
from engine_rig import NEXT_BOOT, Rig, SpoiltImage, pattern
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import cow.disk.mapped_file
from cow.disk.checkpoints import changed_in, checkpoints_of
from cow.disk.filesystems import Storing
from cow.disk.layout import Counter, Durability, State
from cow.errors import BlockReleased, Damaged, SnapshotEnded, SnapshotLost
from cow.holes import between
from cow.live import reverting
from cow.live.overflow import OverflowPolicy
from cow.live.reverting import Revert
from cow.mount.recovery import Outcome
from cow.snapshot import SnapshotReader

BLOCK_BYTES = 512
BLOCKS = 48
OLD = pattern(BLOCKS * BLOCK_BYTES - 50)
MAX_SNAPSHOTS = 6
SLOTS = 32
# In blocks; 0 is none, and the last is never reached.
LIMITS = [0, 4, 10, 20, 40, 1 << 20]

HOLDERS = ["a" * 32, "b" * 32]

BLOCK = st.integers(0, BLOCKS - 1)
RUN = st.tuples(BLOCK, st.integers(1, 12)).map(lambda run: (run[0], min(BLOCKS, sum(run))))


@dataclass
class Snapshot:
    """What is right: the bytes, but for blocks that read as zeros, and those that are released or lost.

    `in_image`: blocks of which nobody has a copy yet.
    """

    content: bytes
    in_image: set[int] = field(default_factory=lambda: set(range(BLOCKS)))
    free: set[int] = field(default_factory=set)
    released: set[int] = field(default_factory=set)
    lost: set[int] = field(default_factory=set)
    is_over: bool = False

    def lose(self, blocks: set[int]) -> None:
        """The image cannot give them any more."""
        self.lost |= blocks & self.in_image
        self.in_image -= blocks


@dataclass
class Held:
    """A checkpoint: what the image was, who holds it, and whether something may have been missed since."""

    content: bytes
    holders: set[str] = field(default_factory=set)
    may_be_void: bool = False


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
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(cow.disk.mapped_file, "storing_on", lambda fd: self.storing)
        self._patch.setattr(reverting, "_PIECE_BYTES", 3 * BLOCK_BYTES)
        self.directory = Path(tempfile.mkdtemp(prefix="chain-model-"))
        self.rig = Rig(
            self.directory,
            OLD,
            block_bytes=BLOCK_BYTES,
            durability=self.durability,
            staging_slots=SLOTS,
            policy=policy,
        )
        self.rig.takes_snapshot = takes_snapshot
        self.rig.spoil()
        self.rig.on_wake = self._make_room
        self.image, self.boot, self.has_lost = bytearray(OLD), 0, False
        self.shortest, self.is_short = len(OLD), False
        # The last cut in whose time the image changed and nobody wrote.
        self.has_missed = 0
        self.readers: dict[int, SnapshotReader] = {}
        self.ended: list[SnapshotReader] = []
        assert self._open() is Outcome.NEW
        self._begin_anew()
        for seed in chain:
            self.write(seed % BLOCKS, 0, 6 * BLOCK_BYTES, seed)
            self.cut(is_named=True)

    def _open(self) -> Outcome:
        opened = self.rig.open(NEXT_BOOT[:-1] + bytes([self.boot]))
        if opened.outcome is Outcome.CARRIED_ON:
            said = [note for note in opened.notes if "that are lost and read as errors" in note]
            assert said == [note for note in opened.notes if "only checkpoints" not in note]
            assert self.has_lost or not said
        # There is no view that would have to let go of anything.
        self.rig.control[Counter.SHOWN_HEADERS] = 1 << 60
        self.limit_bytes = 0
        return opened.outcome

    def _begin_anew(self) -> None:
        """A store that has the present alone, or nothing."""
        self.shortest, self.has_missed = len(OLD), 0
        self.snapshots = {1: Snapshot(bytes(self.image))} if self.rig.takes_snapshot else {}
        self.named: set[int] = set()
        self.mapped: set[int] = set()
        self.checkpoints: dict[int, Held] = {}

    def _make_room(self) -> None:
        """The compactor, as far as a write waits for it."""
        if self.rig.engine.pressing.threads:
            self.rig.compactor.drain()
            self.rig.compactor.tidy()
            self.rig.engine.room.look_again()

    @property
    def bad(self) -> set[int]:
        assert isinstance(self.rig.image, SpoiltImage)
        return self.rig.image.bad

    @property
    def is_newest_shown(self) -> bool:
        return self.rig.cut.generation in self.snapshots

    # --- steps -----------------------------------------------------------------------------------------------

    @rule(
        first=BLOCK, shift=st.sampled_from([0, 0, 1, 40]), length=st.integers(1, 6 * BLOCK_BYTES), seed=st.integers(1)
    )
    def write(self, first: int, shift: int, length: int, seed: int) -> None:
        offset = first * BLOCK_BYTES + shift
        end = min(offset + length, len(OLD))
        if end > self.shortest:
            with pytest.raises(OSError, match="cut short"):
                self.rig.engine.write(end - 1, b"x")
            end = self.shortest
            self._see_overflow()
        if offset >= end:
            return
        data, blocks = (
            pattern(end - offset, seed % (1 << 20)),
            set(range(*self.rig.geometry.span(offset, end - offset))),
        )
        bad = blocks & self.bad
        self.rig.write(offset, data)
        self.image[offset:end] = data
        self._see_overflow()
        # Perhaps only to one that was deleted and waits to be merged.
        self.has_lost |= bool(bad)
        for snapshot in self.snapshots.values():
            snapshot.lose(bad)
            snapshot.in_image -= blocks

    @rule(
        first=BLOCK, shift=st.sampled_from([0, 0, 1, 40]), length=st.integers(1, 6 * BLOCK_BYTES), gives=st.booleans()
    )
    def zero(self, first: int, shift: int, length: int, gives: bool) -> None:
        """A discard: of what is a hole already nothing is replaced."""
        offset = first * BLOCK_BYTES + shift
        end = min(offset + length, self.shortest)
        if offset >= end:
            return
        data = list(between(list(self.rig.image.holes(offset, end)), offset, end))
        blocks = {block for start, stop in data for block in range(*self.rig.geometry.span(start, stop - start))}
        bad = blocks & self.bad
        self.rig.compactor.drain()
        self.rig.engine.zero(offset, end - offset, give_back=gives)
        self.image[offset:end] = bytes(end - offset)
        self._see_overflow()
        self.has_lost |= bool(bad)
        for snapshot in self.snapshots.values():
            snapshot.lose(bad)
            snapshot.in_image -= blocks

    def _see_overflow(self) -> None:
        """Who had to give way, and none that had not."""
        assert self.rig.store is not None
        states = {cut.generation: cut.numbers.state for cut in self.rig.store.cuts}
        kept = [one for one, snapshot in sorted(self.snapshots.items()) if not snapshot.is_over]
        lost = [one for one in kept if states[one] is State.OVERFLOWED]
        if State.OVERFLOWED in states.values():
            self._void(max(one for one, state in states.items() if state is State.OVERFLOWED))
        if lost:
            assert 0 < self.limit_bytes < LIMITS[-1] * BLOCK_BYTES
            assert lost == kept[: len(lost)]
            assert self.rig.policy is OverflowPolicy.BREAK_OLDEST or lost == kept
        for generation in lost:
            self.snapshots[generation].is_over = True

    def _void(self, generation: int) -> None:
        """The cut may have missed something."""
        for one, held in self.checkpoints.items():
            held.may_be_void |= one <= generation

    @precondition(lambda self: self.snapshots or self.checkpoints)
    @rule(data=st.data(), holder=st.sampled_from(HOLDERS))
    def hold(self, data: st.DataObject, holder: str) -> None:
        """Any that is there, or held already."""
        generation = data.draw(st.sampled_from(sorted({*self.snapshots, *self.checkpoints})))
        self.rig.engine.cuts.hold_checkpoint(self._id_of(generation), holder)
        if generation not in self.checkpoints:
            self.checkpoints[generation] = Held(self.snapshots[generation].content)
            # It may have happened before.
            self.checkpoints[generation].may_be_void = True in {
                one.is_over for at, one in self.snapshots.items() if at >= generation
            } or (self.has_missed and generation <= self.has_missed)
        self.checkpoints[generation].holders.add(holder)

    hold_more = hold

    @rule(data=st.data(), holder=st.sampled_from(HOLDERS))
    def let_go(self, data: st.DataObject, holder: str) -> None:
        """All of a holder, but some."""
        kept = data.draw(st.sets(st.sampled_from(sorted(self.checkpoints)))) if self.checkpoints else set()
        for gone in self.rig.engine.cuts.let_go_checkpoints(holder, [self._id_of(one) for one in kept]):
            gone.let_go()
        for generation in self.checkpoints.keys() - kept:
            self.checkpoints[generation].holders.discard(holder)
        self.checkpoints = {at: held for at, held in self.checkpoints.items() if held.holders}

    def _id_of(self, generation: int) -> bytes:
        assert self.rig.store is not None
        facts = self.rig.store.header.cut_of(generation)
        assert facts is not None
        return facts.snapshot_id

    @rule(is_named=st.booleans() | st.just(True))
    def cut(self, is_named: bool) -> None:
        if self.is_short:
            with pytest.raises(OSError, match="cut short"):
                self.rig.make_cut("refused")
            return
        newest = self.rig.cut.generation
        is_named = is_named and len(self.snapshots) < MAX_SNAPSHOTS
        self.rig.make_cut(f"n{self.rig.cut.generation}" if is_named else "")
        if newest in self.snapshots and newest not in self.named:
            self._forget(newest)
        generation = self.rig.cut.generation
        self.snapshots[generation] = Snapshot(bytes(self.image))
        self.shortest = len(OLD)
        if is_named:
            self.named.add(generation)

    @precondition(lambda self: len(self.snapshots) > 1)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self._delete(data.draw(st.sampled_from(sorted(self.snapshots))))

    @precondition(lambda self: self.snapshots)
    @rule(all_of_them=st.integers(0, 5))
    def delete_newest(self, all_of_them: int) -> None:
        generations = sorted(self.snapshots)
        for generation in reversed(generations if not all_of_them else generations[1:][-1:]):
            self._delete(generation)

    def _delete(self, generation: int) -> None:
        for gone in self.rig.engine.cuts.forget(generation):
            gone.let_go()
        self._forget(generation)

    def _forget(self, generation: int) -> None:
        del self.snapshots[generation]
        if generation in self.readers:
            self.ended.append(self.readers.pop(generation))

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

    @precondition(lambda self: self.rig.cut.generation not in self.mapped)
    @rule(run=RUN)
    def learn_what_is_free(self, run: tuple[int, int]) -> None:
        """The map of the newest is known, be it deleted by now; once for each."""
        self.rig.settle_free([run])
        generation = self.rig.cut.generation
        self.mapped.add(generation)
        if self.is_newest_shown:
            self.snapshots[generation].free = set(range(*run))

    @precondition(lambda self: self.snapshots)
    @rule(run=RUN, data=st.data())
    def release(self, run: tuple[int, int], data: st.DataObject) -> None:
        """Of any, most often the newest."""
        generations = sorted(self.snapshots)
        generation = data.draw(st.sampled_from([*generations, *generations[-1:] * 3]))
        assert self.rig.store is not None
        cut = next(cut for cut in self.rig.store.cuts if cut.generation == generation)
        if not self.snapshots[generation].is_over:
            self.rig.engine.cuts.release(*run, cut)
            self.snapshots[generation].released |= set(range(*run))

    @rule(blocks=st.sampled_from(LIMITS))
    def limit(self, blocks: int) -> None:
        self.limit_bytes = blocks * BLOCK_BYTES
        self.rig.engine.room.set_limit(self.limit_bytes)

    @rule()
    def settle_again(self) -> None:
        self.rig.engine.cuts.settle_again()

    # What was cut off gives no bytes before the next cut, also when it is there again.
    @precondition(lambda self: self.snapshots and not (self.limit_bytes or self.shortest < len(OLD) or self.bad))
    @rule(data=st.data(), pieces=st.integers(0, 7) | st.just(BLOCKS))
    def revert(self, data: st.DataObject, pieces: int) -> None:
        """To any, but not if it takes more pieces; then it is noted, and what comes next comes to a mixture."""
        generation = data.draw(st.sampled_from(sorted(self.snapshots)))
        target = self.snapshots[generation]
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
        expected = bytearray(self.image)
        for block_no in set(range(BLOCKS)) - target.free:
            offset, length = self.rig.geometry.extent(block_no, block_no + 1)
            expected[offset : offset + length] = target.content[offset : offset + length]
        try:
            work.run(check_wanted)
        except BlockReleased:
            assert target.released
        except Stopped:
            expected = self.rig.live()
        assert self.rig.live() == (self.image if target.released else expected)
        written = {
            block_no
            for block_no in range(BLOCKS)
            for offset, length in [self.rig.geometry.extent(block_no, block_no + 1)]
            if expected[offset : offset + length] != self.image[offset : offset + length]
        }
        self.image[:] = self.rig.live()
        for snapshot in self.snapshots.values() if not target.released else ():
            snapshot.in_image -= written

    @rule(block_no=BLOCK)
    def spoil(self, block_no: int) -> None:
        self.bad.add(block_no)

    @precondition(lambda self: not self.is_short)
    @rule(length=st.integers(1, len(OLD)), stays=st.booleans())
    def cut_image_short(self, length: int, stays: bool) -> None:
        length, info = max(1, len(OLD) - length), os.stat(self.rig.image_path)
        os.truncate(self.rig.image_path, length)
        # Else it would be somebody else's change.
        os.utime(self.rig.image_path, ns=(info.st_atime_ns, info.st_mtime_ns))
        self.rig.image.look()
        self.shortest, self.is_short, self.has_lost = min(length, self.shortest), True, True
        self.image[length:] = bytes(len(OLD) - length)
        self.has_missed = self.rig.cut.generation
        self._void(self.has_missed)
        gone = set(range(self.shortest // BLOCK_BYTES, BLOCKS))
        for snapshot in self.snapshots.values():
            snapshot.lose(gone)
        if not stays:
            self.make_image_whole()

    @precondition(lambda self: self.is_short)
    @rule()
    def make_image_whole(self) -> None:
        info = os.stat(self.rig.image_path)
        os.truncate(self.rig.image_path, len(OLD))
        os.utime(self.rig.image_path, ns=(info.st_atime_ns, info.st_mtime_ns))
        self.is_short = False

    @rule(end=st.integers(0, 9).map(lambda number: ["clean", "kill", "power"][min(number // 4, 2)]))
    def stop(self, end: str) -> None:
        """A clean end, a kill, or the loss of power, in which nothing was lost."""
        if self.is_short:
            self.make_image_whole()
        self.readers.clear()
        self.ended.clear()
        if end == "clean":
            self.rig.seal()
        else:
            self.rig.abandon()
        self.boot += end == "power"
        outcome = self._open()
        if not self.snapshots and not self.checkpoints:
            assert outcome is Outcome.NEW
        elif end == "power" and self.durability is Durability.PROCESS:
            assert outcome is Outcome.LOST
        else:
            assert outcome is Outcome.CARRIED_ON
        if outcome is not Outcome.CARRIED_ON:
            self._begin_anew()

    # --- what is right ---------------------------------------------------------------------------------------

    @invariant()
    def check(self) -> None:
        rig = self.rig
        assert rig.store is not None
        rig.rules.look()
        expected = self.image[: self.shortest] if self.is_short else self.image
        assert rig.image_path.read_bytes()[: len(expected)] == expected
        assert [one.generation for one in rig.store.header.shown] == sorted(self.snapshots)
        if not self.snapshots and not self.checkpoints:
            assert rig.numbers.state is State.NONE
        self._check_checkpoints()
        for generation, snapshot in self.snapshots.items():
            if snapshot.is_over:
                with pytest.raises(SnapshotLost):
                    self._reader(generation).read(0, 1)
            else:
                self._check_snapshot(self._reader(generation), snapshot)
        for reader in self.ended:
            with pytest.raises((SnapshotEnded, SnapshotLost)):
                reader.read(0, 1)

    def _check_checkpoints(self) -> None:
        """What differs from what the image was then, is known to be written; what may be missing, is told."""
        store = self.rig.store
        assert store is not None
        found = {one.facts.generation: one for one in checkpoints_of(store.header, store.cuts, store.geometry)}
        assert {at: set(one.facts.holders) for at, one in found.items()} == {
            at: held.holders for at, held in self.checkpoints.items()
        }
        for generation, held in self.checkpoints.items():
            assert held.may_be_void or found[generation].void is None
            if found[generation].void is not None:
                continue
            changed = changed_in([cut for cut in store.cuts if cut.generation >= generation], BLOCKS)
            for block_no in range(BLOCKS):
                offset, length = self.rig.geometry.extent(block_no, block_no + 1)
                is_same = self.image[offset : offset + length] == held.content[offset : offset + length]
                assert is_same or changed[block_no], f"block {block_no} since {generation}"

    def _reader(self, generation: int) -> SnapshotReader:
        """One that lives on through what comes."""
        if generation not in self.readers:
            self.readers[generation] = self.rig.new_reader(generation)
        return self.readers[generation]

    @rule()
    def read_anew(self) -> None:
        """Readers that begin now."""
        self.readers.clear()

    def _check_snapshot(self, reader: SnapshotReader, snapshot: Snapshot) -> None:
        for raised, first, end in self._runs_of(snapshot):
            offset, length = self.rig.geometry.extent(first, end)
            if raised:
                with pytest.raises(raised):
                    reader.read(offset, length)
                continue
            expected = bytearray(snapshot.content[offset : offset + length])
            for block_no in snapshot.free & set(range(first, end)):
                at, count = self.rig.geometry.extent(block_no, block_no + 1)
                expected[at - offset : at - offset + count] = bytes(count)
            assert reader.read(offset, length) == expected, f"blocks {first} to {end - 1}"

    def _runs_of(self, snapshot: Snapshot) -> Iterator[tuple[tuple[type[Exception], ...], int, int]]:
        """Runs of blocks that can be read, and each of the others with what it raises."""

        def raised(block_no: int) -> tuple[type[Exception], ...]:
            if block_no in snapshot.released:
                return (BlockReleased,)
            if block_no in snapshot.free:
                return ()
            if block_no in snapshot.lost:
                return (Damaged, OSError)
            return (OSError,) if block_no in snapshot.in_image & self.bad else ()

        for error, blocks in groupby(range(BLOCKS), raised):
            run = list(blocks)
            if error:
                yield from ((error, block_no, block_no + 1) for block_no in run)
            else:
                yield (), run[0], run[-1] + 1

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.close()
            shutil.rmtree(self.directory)
            self._patch.undo()


class DurableChainMachine(ChainMachine):
    durability = Durability.POWER


class WrittenChainMachine(ChainMachine):
    storing = Storing.WRITTEN


class DurableWrittenChainMachine(ChainMachine):
    durability = Durability.POWER
    storing = Storing.WRITTEN


MACHINES = [ChainMachine, DurableChainMachine, WrittenChainMachine, DurableWrittenChainMachine]


@pytest.mark.parametrize("machine", MACHINES)
def test_every_snapshot_is_right_whatever_is_done(machine: type[RuleBasedStateMachine]) -> None:
    quick = settings(
        max_examples=12,
        stateful_step_count=50,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=quick)
