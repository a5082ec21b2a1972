"""Stopped at every single change: the snapshot is whole, acknowledged writes are there, nothing else changed."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_rig import BOOT, NEXT_BOOT, Rig, pattern
from stops import Progress, Recorder, recording

from cow.disk.layout import Durability, State
from cow.errors import Damaged
from cow.mount.recovery import Outcome

BLOCK_BYTES = 4096
IMAGE_BYTES = 24 * BLOCK_BYTES + 100
OLD = pattern(IMAGE_BYTES)
# Whole blocks, parts of blocks, blocks that are preserved already, the short last block, more than the ring takes.
WRITES = [
    (0, pattern(100, 2)),
    (3 * BLOCK_BYTES - 1, pattern(BLOCK_BYTES + 2, 3)),
    (IMAGE_BYTES - 200, pattern(200, 4)),
    (8 * BLOCK_BYTES, pattern(4 * BLOCK_BYTES, 5)),
    (9 * BLOCK_BYTES, pattern(6 * BLOCK_BYTES, 6)),
    (5 * BLOCK_BYTES + 7, pattern(BLOCK_BYTES, 7)),
    (16 * BLOCK_BYTES, pattern(8 * BLOCK_BYTES, 8)),
]
MakeRig = Callable[..., Rig]
Work = Callable[[Rig, Recorder], None]


def image_after(count: int) -> bytes:
    image = bytearray(OLD)
    for offset, data in WRITES[:count]:
        image[offset : offset + len(data)] = data
    return bytes(image)


def do_writes(rig: Rig, recorder: Recorder) -> None:
    for number, (offset, data) in enumerate(WRITES, 1):
        rig.write(offset, data)
        recorder.progress.written = number
        if number % 3 == 0:
            rig.engine.sync()
            recorder.progress.synced = number
        if number % 2 == 0:
            rig.compactor.step()


def first_use(rig: Rig, recorder: Recorder) -> None:
    recorder.arm()
    rig.open()
    recorder.progress.opened = True
    do_writes(rig, recorder)
    rig.seal()


def carried_on_after_kill(rig: Rig, recorder: Recorder) -> None:
    rig.open()
    recorder.progress.opened = True
    do_writes(rig, recorder)
    rig.abandon()
    recorder.arm()
    rig.open()
    rig.compactor.drain()


def carried_on_after_seal(rig: Rig, recorder: Recorder) -> None:
    rig.open()
    recorder.progress.opened = True
    do_writes(rig, recorder)
    rig.seal()
    recorder.arm()
    rig.open(NEXT_BOOT)
    rig.write(*WRITES[-1])


# The boot in which the store is found: a sealed one may be found in another.
FOUND_BY = {first_use: BOOT, carried_on_after_kill: BOOT, carried_on_after_seal: NEXT_BOOT}


@pytest.mark.parametrize("work", [first_use, carried_on_after_kill, carried_on_after_seal])
@pytest.mark.parametrize("durability", list(Durability))
def test_killed_at_every_change(make_rig: MakeRig, tmp_path: Path, durability: Durability, work: Work) -> None:
    stop_everywhere(make_rig, tmp_path, durability, work, power=False)


@pytest.mark.parametrize("work", [first_use, carried_on_after_kill, carried_on_after_seal])
def test_power_lost_at_every_change(make_rig: MakeRig, tmp_path: Path, work: Work) -> None:
    stop_everywhere(make_rig, tmp_path, Durability.POWER, work, power=True)


@pytest.mark.parametrize(("durability", "power"), [(Durability.PROCESS, False), (Durability.POWER, True)])
def test_stopped_while_a_block_is_lost(
    make_rig: MakeRig, tmp_path: Path, durability: Durability, power: bool
) -> None:
    """The block that the image cannot give reads as an error or as it was, never as it is now."""
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=durability, staging_slots=16)
    rig.spoil(10)
    with recording(rig, tmp_path, power=power) as recorder:
        rig.open()
        recorder.arm()
        rig.engine.write(9 * BLOCK_BYTES, pattern(4 * BLOCK_BYTES, 5))
        rig.compactor.drain()
    for moment in recorder.moments:
        boot = moment.number.to_bytes(16, "little") if power else BOOT
        left = Rig(moment.directory, OLD, block_bytes=BLOCK_BYTES, durability=durability, staging_slots=16)
        try:
            left.open(boot)
            left.write(0, bytes(IMAGE_BYTES))
            for block_no in range(left.geometry.block_count):
                offset, length = left.geometry.extent(block_no, block_no + 1)
                try:
                    assert left.reader.read(offset, length) == OLD[offset : offset + length]
                except Damaged:
                    assert block_no == 10
        finally:
            left.remove()


def stop_everywhere(make_rig: MakeRig, tmp_path: Path, durability: Durability, work: Work, *, power: bool) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=durability, staging_slots=16)
    with recording(rig, tmp_path, power=power) as recorder:
        work(rig, recorder)
    assert len(recorder.moments) > 20
    for moment in recorder.moments:
        boot = moment.number.to_bytes(16, "little") if power else FOUND_BY.get(work, BOOT)
        left = Rig(moment.directory, OLD, block_bytes=BLOCK_BYTES, durability=durability, staging_slots=16)
        try:
            check_after(left, moment.progress, boot, f"at change {moment.number}", synced_only=power)
        finally:
            left.remove()


def check_after(rig: Rig, progress: Progress, boot: bytes, when: str, *, synced_only: bool = False) -> None:
    """Open again: the snapshot is whole and stays so; the image holds what it must."""
    found = rig.image_path.read_bytes()
    certain = progress.synced if synced_only else progress.written
    states = [image_after(count) for count in range(certain, min(progress.written + 1, len(WRITES)) + 1)]
    assert len(found) == IMAGE_BYTES
    for at in range(0, IMAGE_BYTES, BLOCK_BYTES):
        block = slice(at, at + BLOCK_BYTES)
        assert found[block] in [state[block] for state in states], when
    opened = rig.open(boot)
    if progress.opened:
        assert opened.outcome is Outcome.CARRIED_ON, when
    old = OLD if opened.outcome is Outcome.CARRIED_ON else found
    assert opened.notes == [], when
    assert rig.numbers.state is State.ACTIVE, when
    assert rig.snapshot() == old, when
    overwrite_all(rig)
    assert rig.snapshot() == old, when


def overwrite_all(rig: Rig) -> None:
    new = random.Random(1).randbytes(IMAGE_BYTES)
    rig.write(0, new)
    rig.compactor.drain()
    assert rig.live() == new
