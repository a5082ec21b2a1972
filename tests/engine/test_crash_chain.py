"""Stopped at every change while snapshots are kept, deleted and merged: each is there whole, or not any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from chain_steps import (
    BLOCK_BYTES,
    BLOCKS,
    CHECKPOINTS,
    NEWEST_DELETED,
    OLD,
    OLDEST_GIVES_WAY,
    STEPS,
    Merge,
    Model,
    Step,
    models,
)
from engine_rig import BOOT, Rig, pattern
from stops import Recorder, recording

from cow.disk.checkpoints import changed_in, checkpoints_of
from cow.disk.layout import Counter, Durability
from cow.errors import SnapshotLost
from cow.live.overflow import OverflowPolicy
from cow.snapshot import SnapshotReader

MakeRig = Callable[..., Rig]


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
