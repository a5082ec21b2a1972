"""Stopped at every change while snapshots are kept, deleted and merged: each is there whole, or not any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from engine_rig import BOOT, Rig, pattern
from stops import Recorder, recording

from cow.disk.layout import Durability
from cow.snapshot import SnapshotReader

BLOCK_BYTES = 4096
BLOCKS = 20
OLD = pattern(BLOCKS * BLOCK_BYTES - 50)
MakeRig = Callable[..., Rig]


@dataclass(frozen=True)
class Model:
    """What is right after some of the steps: the image, and each snapshot by its name."""

    image: bytes = OLD
    snapshots: dict[str, bytes] = field(default_factory=lambda: {"": OLD})


@dataclass(frozen=True)
class Write:
    first: int
    count: int
    seed: int

    def apply(self, model: Model) -> Model:
        image, data = bytearray(model.image), pattern(self.count * BLOCK_BYTES, self.seed)
        image[self.first * BLOCK_BYTES : self.first * BLOCK_BYTES + len(data)] = data
        return replace(model, image=bytes(image[: len(OLD)]))

    def run(self, rig: Rig) -> None:
        offset = self.first * BLOCK_BYTES
        rig.write(offset, pattern(self.count * BLOCK_BYTES, self.seed)[: len(OLD) - offset])


@dataclass(frozen=True)
class Cut:
    name: str

    def apply(self, model: Model) -> Model:
        kept = {name: old for name, old in model.snapshots.items() if name}
        return replace(model, snapshots={**kept, self.name: model.image})

    def run(self, rig: Rig) -> None:
        rig.make_cut(self.name)


@dataclass(frozen=True)
class Delete:
    name: str

    def apply(self, model: Model) -> Model:
        return replace(model, snapshots={name: old for name, old in model.snapshots.items() if name != self.name})

    def run(self, rig: Rig) -> None:
        assert rig.store is not None
        generation = next(one.generation for one in rig.store.header.cuts if one.name == self.name)
        for gone in rig.engine.forget_cut(generation):
            gone.let_go()


@dataclass(frozen=True)
class Merge:
    def apply(self, model: Model) -> Model:
        return model

    def run(self, rig: Rig) -> None:
        rig.compactor.drain()
        while (gone := rig.engine.merge_cut()) is not None:
            gone.let_go()


STEPS = [
    Write(0, 3, 2),
    Cut("a"),
    Write(2, 4, 3),
    Cut("b"),
    Write(4, 4, 4),
    Cut("c"),
    Delete("b"),
    Write(7, 3, 5),
    Merge(),
    Cut(""),
    Write(9, 2, 6),
    Cut(""),
    Merge(),
    Write(0, 6, 7),
    Delete("a"),
    Merge(),
    Write(12, 4, 8),
]


def models() -> list[Model]:
    states = [Model()]
    for step in STEPS:
        states.append(step.apply(states[-1]))
    return states


def read(rig: Rig, generation: int) -> bytes:
    assert rig.store is not None
    cut = rig.store.open_cut(generation, writable=False)
    reader = SnapshotReader(replace(rig.store, cut=cut), rig.image)
    try:
        return reader.read(0, len(OLD))
    finally:
        reader.close()
        cut.let_go()


def check_snapshots(rig: Rig, sure: Model, possible: Model, when: str) -> None:
    assert rig.store is not None
    shown = [one for one in rig.store.header.cuts if not one.is_hidden]
    assert sure.snapshots.keys() & possible.snapshots.keys() <= {one.name for one in shown}, when
    for one in shown:
        right = [model.snapshots[one.name] for model in (sure, possible) if one.name in model.snapshots]
        assert read(rig, one.generation) in right, f"{when}: snapshot {one.name!r}"


def check_after(rig: Rig, done: int, boot: bytes, when: str) -> None:
    states = models()
    sure, possible = states[done], states[min(done + 1, len(STEPS))]
    assert rig.open(boot).notes == [], when
    check_snapshots(rig, sure, possible, when)
    rig.write(0, pattern(len(OLD), 77))
    Merge().run(rig)
    check_snapshots(rig, sure, possible, when)


def stop_everywhere(make_rig: MakeRig, tmp_path: Path, durability: Durability, *, power: bool) -> None:
    rig = make_rig(OLD, durability=durability, staging_slots=16)
    with recording(rig, tmp_path, power=power) as recorder:
        do_steps(rig, recorder)
    assert len(recorder.moments) > 100
    for moment in recorder.moments:
        boot = moment.number.to_bytes(16, "little") if power else BOOT
        left = Rig(moment.directory, OLD, durability=durability, staging_slots=16)
        try:
            check_after(left, moment.progress.written, boot, f"at change {moment.number}")
        finally:
            left.remove()


def do_steps(rig: Rig, recorder: Recorder) -> None:
    rig.open()
    recorder.arm()
    for number, step in enumerate(STEPS, 1):
        step.run(rig)
        recorder.progress.written = number
    rig.seal()


@pytest.mark.parametrize("durability", list(Durability))
def test_killed_while_snapshots_come_and_go(make_rig: MakeRig, tmp_path: Path, durability: Durability) -> None:
    stop_everywhere(make_rig, tmp_path, durability, power=False)


def test_power_lost_while_snapshots_come_and_go(make_rig: MakeRig, tmp_path: Path) -> None:
    stop_everywhere(make_rig, tmp_path, Durability.POWER, power=True)
