"""Stopped at every change while blocks of older snapshots are released and given back: the others stay whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import pytest
from chain_steps import BLOCK_BYTES, BLOCKS, OLD, Cut, Delete, Merge, Model, Write
from engine_rig import BOOT, Rig, pattern
from stops import recording

from cow.disk.layout import Durability
from cow.errors import BlockReleased
from cow.snapshot import SnapshotReader

MakeRig = Callable[..., Rig]


@dataclass(frozen=True)
class Released(Model):
    """And which blocks of which snapshot are not to be read any more."""

    blocks: frozenset[tuple[str, int]] = frozenset()


class Step(Protocol):
    def apply(self, model: Model) -> Model: ...

    def run(self, rig: Rig) -> None: ...


@dataclass(frozen=True)
class Release:
    name: str
    first: int
    end: int

    def apply(self, model: Model) -> Model:
        assert isinstance(model, Released)
        return replace(model, blocks=model.blocks | {(self.name, at) for at in range(self.first, self.end)})

    def run(self, rig: Rig) -> None:
        assert rig.store is not None
        generation = next(one.generation for one in rig.store.header.cuts if one.name == self.name)
        cut = next(cut for cut in rig.store.cuts if cut.generation == generation)
        rig.engine.cuts.release(self.first, self.end, cut)


@dataclass(frozen=True)
class GiveBack:
    def apply(self, model: Model) -> Model:
        return model

    def run(self, rig: Rig) -> None:
        rig.compactor.drain()
        rig.give_back()


STEPS: list[Step] = [
    Cut("a"),
    Write(2, 4, 3),
    Cut("b"),
    Write(4, 2, 4),
    GiveBack(),
    Write(6, 2, 5),
    Cut("c"),
    Write(8, 2, 6),
    Release("a", 0, 4),
    Release("b", 4, 8),
    GiveBack(),
    Delete("c"),
    Write(10, 2, 7),
    Cut("d"),
    Release("b", 8, 12),
    Merge(),
    GiveBack(),
    Delete("a"),
    GiveBack(),
    Write(3, 6, 8),
    Release("d", 4, 7),
    GiveBack(),
    Delete("b"),
    GiveBack(),
]


def models() -> list[Released]:
    states: list[Model] = [Released()]
    for step in STEPS:
        states.append(step.apply(states[-1]))
    return [state for state in states if isinstance(state, Released)]


def check_block(reader: SnapshotReader, name: str, block_no: int, sure: Released, possible: Released) -> None:
    offset = block_no * BLOCK_BYTES
    try:
        found = reader.read(offset, min(BLOCK_BYTES, len(OLD) - offset))
    except BlockReleased:
        assert (name, block_no) in possible.blocks
        return
    assert (name, block_no) not in sure.blocks
    states = [state.snapshots[name] for state in (sure, possible) if name in state.snapshots]
    assert found in [content[offset : offset + len(found)] for content in states]


def check_snapshots(rig: Rig, sure: Released, possible: Released, when: str) -> None:
    assert rig.store is not None
    shown = rig.store.header.shown
    assert sure.snapshots.keys() & possible.snapshots.keys() <= {one.name for one in shown}, when
    for one in shown:
        cut = rig.store.open_cut(one.generation, writable=False)
        reader = SnapshotReader(replace(rig.store, cut=cut), rig.image)
        try:
            for block_no in range(BLOCKS):
                check_block(reader, one.name, block_no, sure, possible)
        except Exception as error:
            raise AssertionError(f"{when}: block {block_no} of snapshot {one.name!r}") from error
        finally:
            reader.close()
            cut.let_go()


def stop_everywhere(make_rig: MakeRig, tmp_path: Path, durability: Durability, *, power: bool) -> None:
    rig = make_rig(OLD, durability=durability, staging_slots=16)
    states = models()
    with recording(rig, tmp_path, power=power) as recorder:
        rig.open()
        recorder.arm()
        for number, step in enumerate(STEPS, 1):
            step.run(rig)
            recorder.progress.written = number
        rig.seal()
    assert len(recorder.moments) > 100
    for moment in recorder.moments:
        when, done = f"at change {moment.number}", moment.progress.written
        left = Rig(moment.directory, OLD, durability=durability, staging_slots=16)
        try:
            notes = left.open(moment.number.to_bytes(16, "little") if power else BOOT).notes
            assert notes == [], when
            sure, possible = states[done], states[min(done + 1, len(STEPS))]
            check_snapshots(left, sure, possible, when)
            left.write(0, pattern(len(OLD), 77))
            for step in (GiveBack(), Merge(), GiveBack()):
                step.run(left)
            left.rules.look()
            check_snapshots(left, sure, possible, f"{when}, and gone on")
        finally:
            left.remove()


@pytest.mark.parametrize("durability", list(Durability))
def test_killed_while_older_ones_are_released(make_rig: MakeRig, tmp_path: Path, durability: Durability) -> None:
    stop_everywhere(make_rig, tmp_path, durability, power=False)


def test_power_lost_while_older_ones_are_released(make_rig: MakeRig, tmp_path: Path) -> None:
    stop_everywhere(make_rig, tmp_path, Durability.POWER, power=True)
