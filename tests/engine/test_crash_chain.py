"""Stopped at every change while snapshots are kept, deleted and merged: each is there whole, or not any more."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from engine_rig import BOOT, Rig, pattern
from stops import Recorder, recording

from cow.disk.checkpoints import changed_in, checkpoints_of
from cow.disk.layout import Counter, Durability
from cow.errors import SnapshotLost
from cow.live.overflow import OverflowPolicy
from cow.snapshot import SnapshotReader

BLOCK_BYTES = 4096
BLOCKS = 20
OLD = pattern(BLOCKS * BLOCK_BYTES - 50)
MakeRig = Callable[..., Rig]


HOLDER = "a" * 32


@dataclass(frozen=True)
class Model:
    """What is right after some of the steps: the image, each snapshot by its name, and of each checkpoint what the
    image was."""

    image: bytes = OLD
    snapshots: dict[str, bytes] = field(default_factory=lambda: {"": OLD})
    checkpoints: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Write:
    first: int
    count: int
    seed: int
    # Whether it cannot be compressed.
    is_random: bool = False

    @property
    def data(self) -> bytes:
        length = self.count * BLOCK_BYTES
        return random.Random(self.seed).randbytes(length) if self.is_random else pattern(length, self.seed)

    def apply(self, model: Model) -> Model:
        image, data = bytearray(model.image), self.data
        image[self.first * BLOCK_BYTES : self.first * BLOCK_BYTES + len(data)] = data
        return replace(model, image=bytes(image[: len(OLD)]))

    def run(self, rig: Rig) -> None:
        offset = self.first * BLOCK_BYTES
        rig.write(offset, self.data[: len(OLD) - offset])


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
        for gone in rig.engine.cuts.forget(generation):
            gone.let_go()


@dataclass(frozen=True)
class Hold:
    name: str

    def apply(self, model: Model) -> Model:
        return replace(model, checkpoints={**model.checkpoints, self.name: model.snapshots[self.name]})

    def run(self, rig: Rig) -> None:
        assert rig.store is not None
        facts = next(one for one in rig.store.header.cuts if one.name == self.name)
        rig.engine.cuts.hold_checkpoint(facts.snapshot_id, HOLDER)


@dataclass(frozen=True)
class LetGo:
    """All but those with these names."""

    kept: tuple[str, ...] = ()

    def apply(self, model: Model) -> Model:
        return replace(model, checkpoints={name: old for name, old in model.checkpoints.items() if name in self.kept})

    def run(self, rig: Rig) -> None:
        assert rig.store is not None
        kept = [one.snapshot_id for one in rig.store.header.cuts if one.name in self.kept]
        for gone in rig.engine.cuts.let_go_checkpoints(HOLDER, kept):
            gone.let_go()


@dataclass(frozen=True)
class Merge:
    def apply(self, model: Model) -> Model:
        return model

    def run(self, rig: Rig) -> None:
        rig.compactor.drain()
        while (gone := rig.engine.cuts.merge()) is not None:
            gone.let_go()


@dataclass(frozen=True)
class Overflow:
    """A write for which there is no room before the oldest snapshot has given way."""

    write: Write
    oldest: str

    def apply(self, model: Model) -> Model:
        return Delete(self.oldest).apply(self.write.apply(model))

    def run(self, rig: Rig) -> None:
        rig.compactor.drain()
        rig.engine.room.set_limit(rig.engine.size.shown().stored_bytes + 1)
        self.write.run(rig)
        rig.engine.cuts.settle_again()
        rig.engine.room.set_limit(0)


Step = Write | Cut | Delete | Hold | LetGo | Merge | Overflow

STEPS: list[Step] = [
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


NEWEST_DELETED: list[Step] = [
    Write(0, 3, 2),
    Cut("a"),
    Write(2, 4, 3),
    Cut("b"),
    Write(4, 4, 4),
    Delete("b"),
    Write(6, 4, 5),
    Cut("c"),
    Write(0, 6, 6),
    Merge(),
    Delete("c"),
    Delete("a"),
    Write(3, 4, 7),
    Cut("d"),
    Write(4, 4, 8),
    Delete("d"),
    Merge(),
    Write(0, 4, 9),
    Cut("e"),
    Write(1, 3, 10),
]

OLDEST_GIVES_WAY: list[Step] = [
    Write(0, 12, 2, is_random=True),
    Cut("a"),
    Write(0, 12, 3),
    Cut("b"),
    Write(10, 3, 3),
    Cut("c"),
    Overflow(Write(14, 4, 4), "a"),
    Write(0, 3, 5),
    Cut("d"),
    Merge(),
    Write(9, 3, 6),
    Delete("c"),
    Merge(),
    Write(12, 2, 7),
]


CHECKPOINTS: list[Step] = [
    Hold(""),
    Write(0, 3, 2),
    # Over a held one without a name.
    Cut("a"),
    Write(2, 4, 3),
    Cut("b"),
    Hold("b"),
    Write(4, 4, 4),
    Cut("c"),
    Delete("b"),
    Write(7, 3, 5),
    Merge(),
    Delete("c"),
    Write(9, 3, 6),
    Cut("d"),
    Hold("d"),
    Merge(),
    Write(1, 4, 7),
    LetGo(("d",)),
    Merge(),
    Delete("a"),
    # The newest: only what is written is noted.
    Delete("d"),
    Write(12, 3, 8),
    Cut("e"),
    Write(14, 2, 9),
    LetGo(),
    Write(0, 2, 10),
]


def models(steps: list[Step]) -> list[Model]:
    states = [Model()]
    for step in steps:
        states.append(step.apply(states[-1]))
    return states


def read(rig: Rig, generation: int) -> bytes | None:
    """What the snapshot holds; None of one that gave way."""
    assert rig.store is not None
    cut = rig.store.open_cut(generation, writable=False)
    reader = SnapshotReader(replace(rig.store, cut=cut), rig.image)
    try:
        return reader.read(0, len(OLD))
    except SnapshotLost:
        return None
    finally:
        reader.close()
        cut.let_go()


def check_snapshots(rig: Rig, sure: Model, possible: Model, when: str) -> None:
    assert rig.store is not None
    shown = [one for one in rig.store.header.cuts if not one.is_hidden]
    assert sure.snapshots.keys() & possible.snapshots.keys() <= {one.name for one in shown}, when
    for one in shown:
        right = [model.snapshots.get(one.name) for model in (sure, possible)]
        assert read(rig, one.generation) in right, f"{when}: snapshot {one.name!r}"


def check_checkpoints(rig: Rig, sure: Model, possible: Model, when: str) -> None:
    """Those that are there know all that was written since."""
    assert rig.store is not None
    found = checkpoints_of(rig.store.header, rig.store.cuts, rig.store.geometry)
    names = {one.facts.name for one in found}
    assert sure.checkpoints.keys() & possible.checkpoints.keys() <= names, when
    assert names <= sure.checkpoints.keys() | possible.checkpoints.keys(), when
    image = rig.live()
    for one in found:
        assert one.void is None, when
        old = {**possible.checkpoints, **sure.checkpoints}[one.facts.name]
        changed = changed_in(
            [cut for cut in rig.store.cuts if cut.generation >= one.facts.generation], rig.store.geometry.block_count
        )
        for block_no in range(BLOCKS):
            piece = slice(block_no * BLOCK_BYTES, (block_no + 1) * BLOCK_BYTES)
            assert changed[block_no] or old[piece] == image[piece], (
                f"{when}: block {block_no} since {one.facts.name!r}"
            )


def check_after(rig: Rig, steps: list[Step], done: int, boot: bytes, when: str) -> None:
    states = models(steps)
    sure, possible = states[done], states[min(done + 1, len(steps))]
    # One that has none is left without.
    rig.takes_snapshot = False
    assert rig.open(boot).notes == [], when
    check_snapshots(rig, sure, possible, when)
    check_checkpoints(rig, sure, possible, when)
    rig.write(0, pattern(len(OLD), 77))
    Merge().run(rig)
    check_snapshots(rig, sure, possible, when)
    check_checkpoints(rig, sure, possible, when)


def stop_everywhere(
    make_rig: MakeRig, tmp_path: Path, durability: Durability, steps: list[Step], *, power: bool
) -> None:
    rig = make_rig(OLD, durability=durability, staging_slots=16, policy=OverflowPolicy.BREAK_OLDEST)
    with recording(rig, tmp_path, power=power) as recorder:
        do_steps(rig, steps, recorder)
    assert len(recorder.moments) > 100
    for moment in recorder.moments:
        boot = moment.number.to_bytes(16, "little") if power else BOOT
        left = Rig(moment.directory, OLD, durability=durability, staging_slots=16)
        try:
            check_after(left, steps, moment.progress.written, boot, f"at change {moment.number}")
        finally:
            left.remove()


def do_steps(rig: Rig, steps: list[Step], recorder: Recorder) -> None:
    rig.open()
    # There is no view that would have to let go of anything, and the compactor works when a write waits.
    rig.control[Counter.SHOWN_HEADERS] = 1 << 60
    rig.on_wake = lambda: make_room(rig)
    recorder.arm()
    for number, step in enumerate(steps, 1):
        step.run(rig)
        recorder.progress.written = number
    check_snapshots(rig, models(steps)[-1], models(steps)[-1], "at the end")
    check_checkpoints(rig, models(steps)[-1], models(steps)[-1], "at the end")
    rig.seal()


def make_room(rig: Rig) -> None:
    if rig.engine.pressing.threads:
        rig.compactor.drain()
        rig.compactor.tidy()
        rig.engine.room.look_again()


ALL = pytest.mark.parametrize("steps", [STEPS, NEWEST_DELETED, OLDEST_GIVES_WAY, CHECKPOINTS])


@ALL
@pytest.mark.parametrize("durability", list(Durability))
def test_killed_while_snapshots_come_and_go(
    make_rig: MakeRig, tmp_path: Path, durability: Durability, steps: list[Step]
) -> None:
    stop_everywhere(make_rig, tmp_path, durability, steps, power=False)


@ALL
def test_power_lost_while_snapshots_come_and_go(make_rig: MakeRig, tmp_path: Path, steps: list[Step]) -> None:
    stop_everywhere(make_rig, tmp_path, Durability.POWER, steps, power=True)
