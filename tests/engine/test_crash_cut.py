"""Stopped at every change while blocks are freed and released and new cuts are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from engine_rig import BOOT, Rig, pattern
from stops import Progress, Recorder, recording

from cow.disk.layout import Durability, State
from cow.errors import BlockReleased

BLOCK_BYTES = 4096
BLOCKS = 24
OLD = pattern(BLOCKS * BLOCK_BYTES - 50)
MakeRig = Callable[..., Rig]


@dataclass(frozen=True)
class Model:
    """What is right after some of the steps."""

    image: bytes = OLD
    old: bytes = OLD
    generation: int = 1
    free: frozenset[int] = field(default_factory=frozenset)
    released: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Write:
    block_no: int
    data: bytes

    def apply(self, model: Model) -> Model:
        image = bytearray(model.image)
        at = self.block_no * BLOCK_BYTES
        image[at : at + len(self.data)] = self.data
        return replace(model, image=bytes(image[: len(OLD)]))

    def run(self, rig: Rig) -> None:
        rig.write(self.block_no * BLOCK_BYTES, self.data)


@dataclass(frozen=True)
class Free:
    first: int
    end: int

    def apply(self, model: Model) -> Model:
        return replace(model, free=model.free | set(range(self.first, self.end)))

    def run(self, rig: Rig) -> None:
        rig.settle_free([(self.first, self.end)])


@dataclass(frozen=True)
class Release:
    first: int
    end: int

    def apply(self, model: Model) -> Model:
        return replace(model, released=model.released | set(range(self.first, self.end)))

    def run(self, rig: Rig) -> None:
        rig.engine.cuts.release(self.first, self.end)


@dataclass(frozen=True)
class Cut:
    def apply(self, model: Model) -> Model:
        return Model(model.image, model.image, model.generation + 1)

    def run(self, rig: Rig) -> None:
        rig.make_cut()


@dataclass(frozen=True)
class Compact:
    def apply(self, model: Model) -> Model:
        return model

    def run(self, rig: Rig) -> None:
        rig.compactor.step()


@dataclass(frozen=True)
class Squeeze:
    def apply(self, model: Model) -> Model:
        return model

    def run(self, rig: Rig) -> None:
        rig.compactor.step()
        while rig.compactor.squeeze():
            pass


@dataclass(frozen=True)
class Sync:
    def apply(self, model: Model) -> Model:
        return model

    def run(self, rig: Rig) -> None:
        rig.engine.sync()


STEPS = [
    Write(1, pattern(3 * BLOCK_BYTES, 2)),
    Free(10, 14),
    Write(9, pattern(2 * BLOCK_BYTES, 3)),
    Compact(),
    Release(0, 6),
    Write(0, pattern(2 * BLOCK_BYTES, 4)),
    Write(5, pattern(BLOCK_BYTES, 5)),
    Cut(),
    Write(2, pattern(BLOCK_BYTES, 6)),
    Sync(),
    Write(12, pattern(BLOCK_BYTES, 7)),
    Compact(),
    Cut(),
    Write(11, pattern(3 * BLOCK_BYTES, 8)),
    Release(12, 13),
    Write(12, pattern(BLOCK_BYTES, 9)),
    Compact(),
    Write(0, pattern(10 * BLOCK_BYTES, 10)),
    Release(1, 3),
    Squeeze(),
]


def models() -> list[Model]:
    states = [Model()]
    for step in STEPS:
        states.append(step.apply(states[-1]))
    return states


def do_steps(rig: Rig, recorder: Recorder) -> None:
    rig.open()
    recorder.arm()
    for number, step in enumerate(STEPS, 1):
        step.run(rig)
        recorder.progress.written = number
        if isinstance(step, Sync) or (isinstance(step, Cut) and rig.durability is Durability.POWER):
            recorder.progress.synced = number
    rig.seal()


@pytest.mark.parametrize("durability", list(Durability))
def test_killed_while_cutting_and_releasing(make_rig: MakeRig, tmp_path: Path, durability: Durability) -> None:
    stop_everywhere(make_rig, tmp_path, durability, power=False)


def test_power_lost_while_cutting_and_releasing(make_rig: MakeRig, tmp_path: Path) -> None:
    stop_everywhere(make_rig, tmp_path, Durability.POWER, power=True)


def stop_everywhere(make_rig: MakeRig, tmp_path: Path, durability: Durability, *, power: bool) -> None:
    rig = make_rig(OLD, durability=durability, staging_slots=16)
    with recording(rig, tmp_path, power=power) as recorder:
        do_steps(rig, recorder)
    assert len(recorder.moments) > 100
    for moment in recorder.moments:
        boot = moment.number.to_bytes(16, "little") if power else BOOT
        left = Rig(moment.directory, OLD, durability=durability, staging_slots=16)
        try:
            check_after(left, moment.progress, boot, f"at change {moment.number}", synced_only=power)
        finally:
            left.remove()


def check_after(rig: Rig, progress: Progress, boot: bytes, when: str, *, synced_only: bool) -> None:
    states, done = models(), progress.written
    possible = states[done : done + 2]
    images = states[progress.synced : done + 2] if synced_only else possible
    found = rig.image_path.read_bytes()
    for at in range(0, len(OLD), BLOCK_BYTES):
        block = slice(at, at + BLOCK_BYTES)
        assert found[block] in [state.image[block] for state in images], when
    assert rig.open(boot).notes == [], when
    assert rig.numbers.state is State.ACTIVE, when
    matching = [state for state in possible if state.generation == rig.cut.generation]
    assert matching, when
    check_snapshot(rig, matching, when)
    rig.write(0, pattern(len(OLD), 77))
    rig.compactor.drain()
    check_snapshot(rig, matching, when)


def check_snapshot(rig: Rig, matching: list[Model], when: str) -> None:
    sure, possible = matching[0], matching[-1]
    for block_no in range(BLOCKS):
        offset, length = rig.geometry.extent(block_no, block_no + 1)
        old, where = sure.old[offset : offset + length], f"{when}: block {block_no}"
        try:
            found = rig.reader.read(offset, length)
        except BlockReleased:
            assert block_no in possible.released, where
            continue
        assert block_no not in sure.released, where
        right = {old, bytes(length)} if block_no in possible.free else {old}
        assert found in right, where


def test_killed_while_a_cut_follows_an_overflow(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig(OLD, staging_slots=16)
    rig.open()
    rig.engine.room.set_limit(1)
    rig.write(0, b"too much")
    assert rig.numbers.state is State.OVERFLOWED
    present = rig.live()
    with recording(rig, tmp_path) as recorder:
        recorder.arm()
        rig.make_cut()
    for moment in recorder.moments:
        left = Rig(moment.directory, OLD, staging_slots=16)
        try:
            left.open()
            if left.cut.generation == 1:
                assert left.numbers.state is State.OVERFLOWED
            else:
                assert left.numbers.state is State.ACTIVE
                assert left.snapshot() == present
        finally:
            left.remove()
