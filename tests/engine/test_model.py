"""The engine against a naive model: two byte arrays, the live one and the frozen one."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from engine_rig import BOOT, NEXT_BOOT, Rig, pattern
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from cow.disk.layout import Counter, Durability, State
from cow.errors import BlockReleased, Damaged
from cow.mount.recovery import Outcome

_SIZES = [(512, 40_000), (4096, 300_001), (4096, 4096), (4096, 100), (65536, 1_000_000), (1 << 20, 2_500_000)]


class EngineMachine(RuleBasedStateMachine):
    """Random work; every read is compared at once, everything at the end."""

    durability = Durability.PROCESS
    boot = BOOT

    @initialize(size=st.sampled_from(_SIZES), seed=st.integers(1, 1000))
    def begin(self, size: tuple[int, int], seed: int) -> None:
        block_bytes, image_bytes = size
        self.directory = Path(tempfile.mkdtemp(prefix="engine-model-"))
        old = pattern(image_bytes, seed)
        self.rig = Rig(self.directory, old, block_bytes=block_bytes, durability=self.durability, staging_slots=16)
        self.live = bytearray(old)
        assert self.rig.open().outcome is Outcome.NEW

    @rule(data=st.data(), waits=st.booleans(), seed=st.integers(1, 1000))
    def write(self, data: st.DataObject, waits: bool, seed: int) -> None:
        offset, length = data.draw(self._ranges())
        content = pattern(length, seed)
        if waits:
            self.rig.write(offset, content)
        elif not self.rig.engine.try_write(offset, content):
            return
        self.live[offset : offset + length] = content

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        offset, length = data.draw(self._ranges())
        assert self.rig.reader.read(offset, length) == self.rig.old[offset : offset + length]
        assert self.rig.engine.read(offset, length) == self.live[offset : offset + length]

    @rule(data=st.data())
    def try_read(self, data: st.DataObject) -> None:
        offset, length = data.draw(self._ranges())
        view = memoryview(bytearray(length))
        if self.rig.reader.try_read(view, offset):
            assert view == self.rig.old[offset : offset + length]

    @rule()
    def compact(self) -> None:
        self.rig.compactor.step()

    @rule()
    def rest(self) -> None:
        self.rig.engine.rest()

    @rule()
    def kill(self) -> None:
        self.rig.abandon()
        self._reopen()

    @rule()
    def seal(self) -> None:
        self.rig.seal()
        self._reopen()

    @precondition(lambda self: self.durability is Durability.POWER)
    @rule()
    def restart(self) -> None:
        """As after a power loss that lost nothing: the maps are made anew from the records."""
        self.rig.abandon()
        self.boot = NEXT_BOOT if self.boot == BOOT else BOOT
        self._reopen()

    def _reopen(self) -> None:
        opened = self.rig.open(self.boot)
        assert (opened.outcome, opened.notes) == (Outcome.CARRIED_ON, [])

    def _ranges(self) -> st.SearchStrategy[tuple[int, int]]:
        """Offsets and lengths, often at the borders of blocks."""
        size, block = len(self.live), self.rig.block_bytes
        near = st.builds(lambda no, by: no * block + by, st.integers(0, size // block), st.integers(-1, 1))
        places = (near | st.integers(0, size - 1)).map(lambda at: min(max(at, 0), size - 1))
        lengths = st.sampled_from([1, block - 1, block, block + 1, 3 * block]) | st.integers(1, 6 * block)
        return st.tuples(places, lengths).map(lambda pair: (pair[0], max(1, min(pair[1], size - pair[0]))))

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        try:
            assert self.rig.snapshot() == self.rig.old
            assert self.rig.live() == self.live
            assert self.rig.image_path.read_bytes() == self.live
        finally:
            self.rig.close()
            shutil.rmtree(self.directory)


class DurableEngineMachine(EngineMachine):
    durability = Durability.POWER


class SpoiltMachine(EngineMachine):
    """Blocks of the image become unreadable: a write loses those that were owed, and none besides."""

    @initialize(size=st.sampled_from(_SIZES), seed=st.integers(1, 1000))
    def begin(self, size: tuple[int, int], seed: int) -> None:
        super().begin(size, seed)
        self.rig.abandon()
        self.rig.spoil()
        self.rig.open()
        self.owed, self.lost = set(range(self.rig.geometry.block_count)), set[int]()

    @property
    def bad(self) -> set[int]:
        return self.rig.image.bad  # type: ignore[attr-defined,no-any-return]

    @rule(data=st.data())
    def spoil(self, data: st.DataObject) -> None:
        self.bad.add(data.draw(st.integers(0, self.rig.geometry.block_count - 1)))

    @rule(data=st.data(), waits=st.booleans(), seed=st.integers(1, 1000))
    def write(self, data: st.DataObject, waits: bool, seed: int) -> None:
        offset, length = data.draw(self._ranges())
        blocks, bad = set(range(*self.rig.geometry.span(offset, length))), set(self.bad)
        content = pattern(length, seed)
        if waits:
            self.rig.write(offset, content)
        elif not self.rig.engine.try_write(offset, content):
            return
        self.live[offset : offset + length] = content
        self.lost |= blocks & bad & self.owed
        self.owed -= blocks

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        self._check(*data.draw(self._ranges()))

    @rule(data=st.data())
    def try_read(self, data: st.DataObject) -> None:
        self._check(*data.draw(self._ranges()))

    def _check(self, offset: int, length: int) -> None:
        blocks = set(range(*self.rig.geometry.span(offset, length)))
        if blocks & (self.lost | self.bad & self.owed):
            with pytest.raises((Damaged, OSError)):
                self.rig.reader.read(offset, length)
        else:
            assert self.rig.reader.read(offset, length) == self.rig.old[offset : offset + length]
        assert self.rig.numbers.lost_blocks == len(self.lost)
        assert self.rig.numbers.state is (State.DAMAGED if self.lost else State.ACTIVE)

    def _reopen(self) -> None:
        opened = self.rig.open(self.boot)
        said = [f"blocks of the snapshot that are lost and read as errors: {len(self.lost)}"] if self.lost else []
        assert (opened.outcome, opened.notes) == (Outcome.CARRIED_ON, said)

    def teardown(self) -> None:
        if not hasattr(self, "lost"):
            return
        try:
            for block_no in range(self.rig.geometry.block_count):
                self._check(*self.rig.geometry.extent(block_no, block_no + 1))
            assert self.rig.image_path.read_bytes() == self.live
        finally:
            self.rig.close()
            shutil.rmtree(self.directory)


class DurableSpoiltMachine(SpoiltMachine):
    durability = Durability.POWER


class ReliefMachine(EngineMachine):
    """The rules of free and released blocks, of squeezing and of new cuts, on top."""

    @initialize(size=st.sampled_from(_SIZES), seed=st.integers(1, 1000))
    def begin(self, size: tuple[int, int], seed: int) -> None:
        super().begin(size, seed)
        self._forget_cut()

    def _forget_cut(self) -> None:
        """A new cut: everything is owed, nothing is known to be free or released."""
        self.owed = set(range(self.rig.geometry.block_count))
        self.zeros: set[int] = set()
        self.released: set[int] = set()
        self.is_mapped = False

    @rule(data=st.data(), waits=st.booleans(), seed=st.integers(1, 1000))
    def write(self, data: st.DataObject, waits: bool, seed: int) -> None:
        offset, length = data.draw(self._ranges())
        content = pattern(length, seed)
        if waits:
            self.rig.write(offset, content)
        elif not self.rig.engine.try_write(offset, content):
            return
        self.live[offset : offset + length] = content
        self.owed -= set(range(*self.rig.geometry.span(offset, length)))

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        offset, length = data.draw(self._ranges())
        self._check_snapshot(offset, length)
        assert self.rig.engine.read(offset, length) == self.live[offset : offset + length]

    @rule(data=st.data())
    def try_read(self, data: st.DataObject) -> None:
        offset, length = data.draw(self._ranges())
        view = memoryview(bytearray(length))
        released = self.released & set(range(*self.rig.geometry.span(offset, length)))
        try:
            is_done = self.rig.reader.try_read(view, offset)
        except BlockReleased:
            assert released
            return
        assert not is_done or (view == self._frozen()[offset : offset + length] and not released)

    @rule(data=st.data())
    def ask_for_zeros(self, data: st.DataObject) -> None:
        offset, length = data.draw(self._ranges())
        if self.rig.reader.reads_as_zeros(offset, length):
            assert self._frozen()[offset : offset + length] == bytes(length)
            assert not self.released & set(range(*self.rig.geometry.span(offset, length)))

    def _frozen(self) -> bytearray:
        frozen = bytearray(self.rig.old)
        for block_no in self.zeros:
            offset, length = self.rig.geometry.extent(block_no, block_no + 1)
            frozen[offset : offset + length] = bytes(length)
        return frozen

    def _check_snapshot(self, offset: int, length: int) -> None:
        if self.released & set(range(*self.rig.geometry.span(offset, length))):
            with pytest.raises(BlockReleased):
                self.rig.reader.read(offset, length)
        else:
            assert self.rig.reader.read(offset, length) == self._frozen()[offset : offset + length]

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        first, end = data.draw(self._runs())
        blocks = set(range(first, end))
        assert self.rig.engine.cuts.release(first, end) == len(blocks - self.released)
        self.released |= blocks
        self.owed -= blocks

    @precondition(lambda self: not self.is_mapped)
    @rule(data=st.data())
    def learn_what_is_free(self, data: st.DataObject) -> None:
        first, end = data.draw(self._runs())
        blocks = set(range(first, end))
        assert self.rig.settle_free([(first, end)]) == len(blocks & self.owed)
        self.zeros |= blocks
        self.owed -= blocks
        self.is_mapped = True

    @rule()
    def squeeze(self) -> None:
        self.rig.compactor.drain()
        self.rig.compactor.squeeze()

    @rule()
    def rest(self) -> None:
        self.rig.compactor.drain()
        self.rig.control[Counter.COMPACTOR_IDLE] = 1
        assert self.rig.engine.rest()
        self.rig.control[Counter.COMPACTOR_IDLE] = 0

    @rule()
    def cut(self) -> None:
        self.rig.make_cut()
        self.rig.old = bytes(self.live)
        self._forget_cut()

    def _runs(self) -> st.SearchStrategy[tuple[int, int]]:
        count = self.rig.geometry.block_count
        return st.tuples(st.integers(0, count - 1), st.integers(1, 24)).map(
            lambda pair: (pair[0], min(count, pair[0] + pair[1]))
        )

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        try:
            for block_no in range(self.rig.geometry.block_count):
                self._check_snapshot(*self.rig.geometry.extent(block_no, block_no + 1))
            assert self.rig.live() == self.live
        finally:
            self.rig.close()
            shutil.rmtree(self.directory)


class DurableReliefMachine(ReliefMachine):
    durability = Durability.POWER


MACHINES = [
    EngineMachine,
    DurableEngineMachine,
    SpoiltMachine,
    DurableSpoiltMachine,
    ReliefMachine,
    DurableReliefMachine,
]


@pytest.mark.parametrize("machine", MACHINES)
def test_engine_agrees_with_two_byte_arrays(machine: type[RuleBasedStateMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=15 if issubclass(machine, SpoiltMachine) else 40,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
