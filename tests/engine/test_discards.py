"""A discard is a write of zeros that takes no room: preserved for, noted, and stopped at any point as one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_rig import BOOT, Rig, pattern
from stops import recording

from cow.disk.layout import CutCounter, Durability
from cow.errors import BufferFull, OutOfRange
from cow.live.overflow import OverflowPolicy
from cow.mount.recovery import Outcome

BLOCK_BYTES = 4096
BLOCKS = 24
IMAGE_BYTES = BLOCKS * BLOCK_BYTES + 100
OLD = pattern(IMAGE_BYTES)
MakeRig = Callable[..., Rig]
# Whole blocks, parts of some, the short last one, more than the ring takes at once.
DISCARDS = [
    (0, 4 * BLOCK_BYTES),
    (5 * BLOCK_BYTES - 7, BLOCK_BYTES + 9),
    (8 * BLOCK_BYTES, IMAGE_BYTES - 8 * BLOCK_BYTES),
]


def after(count: int) -> bytes:
    image = bytearray(OLD)
    for offset, length in DISCARDS[:count]:
        image[offset : offset + length] = bytes(length)
    return bytes(image)


def allocated(rig: Rig) -> int:
    os.fsync(rig.image_fd)
    return os.fstat(rig.image_fd).st_blocks * 512


@pytest.mark.parametrize("give_back", [True, False])
def test_the_snapshot_is_whole_and_the_image_zeros(make_rig: MakeRig, give_back: bool) -> None:
    rig = make_rig(OLD)
    rig.open()
    before = allocated(rig)
    rig.engine.zero(BLOCK_BYTES, 10 * BLOCK_BYTES, give_back=give_back)
    assert rig.snapshot() == OLD
    assert rig.live() == OLD[:BLOCK_BYTES] + bytes(10 * BLOCK_BYTES) + OLD[11 * BLOCK_BYTES :]
    assert allocated(rig) == before - 10 * BLOCK_BYTES * give_back
    assert rig.numbers[CutCounter.PRESERVED_BLOCKS] == rig.numbers[CutCounter.CHANGED_BLOCKS] == 10


def test_of_a_hole_nothing_is_preserved(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.files.punch(rig.image_fd, 4 * BLOCK_BYTES, 10 * BLOCK_BYTES)
    rig.old = rig.image_path.read_bytes()
    rig.open()
    rig.engine.zero(2 * BLOCK_BYTES, 14 * BLOCK_BYTES, give_back=True)
    assert rig.numbers[CutCounter.PRESERVED_BLOCKS] == 4
    assert rig.snapshot() == rig.old
    rig.write(6 * BLOCK_BYTES, pattern(BLOCK_BYTES, 2))
    assert rig.snapshot() == rig.old


def test_a_hole_is_punched_at_once_however_large(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as it takes nobody else may write."""
    rig, given = make_rig(OLD, block_bytes=BLOCK_BYTES, staging_slots=16), []
    rig.files.punch(rig.image_fd, 2 * BLOCK_BYTES, 18 * BLOCK_BYTES)
    rig.open()
    monkeypatch.setattr(rig.image, "zero", lambda offset, length, give_back: given.append((offset, length)))
    rig.engine.zero(2 * BLOCK_BYTES, 20 * BLOCK_BYTES, give_back=True)
    assert given == [(2 * BLOCK_BYTES, 18 * BLOCK_BYTES), (20 * BLOCK_BYTES, 2 * BLOCK_BYTES)]


def test_a_cut_while_it_waits_is_preserved_for_too(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hole that it found is none any more, and the new snapshot needs what is in its place."""
    rig = make_rig(OLD)
    rig.files.punch(rig.image_fd, 0, 4 * BLOCK_BYTES)
    rig.old = rig.image_path.read_bytes()
    rig.open()
    first, real, news = rig.reader, rig.engine._claiming.preserve, []

    def preserve(low: int, high: int) -> None:
        if not news:
            news.append(pattern(BLOCK_BYTES, 3))
            rig.engine._gate.under_way.pop()
            rig.engine.cuts.name(rig.cut.generation, "first")
            rig.write(0, news[0])
            rig.make_cut()
            rig.engine._gate.under_way.append(0)
        real(low, high)

    monkeypatch.setattr(rig.engine._claiming, "preserve", preserve)
    rig.engine.zero(0, 8 * BLOCK_BYTES, give_back=True)
    assert rig.live() == bytes(8 * BLOCK_BYTES) + OLD[8 * BLOCK_BYTES :]
    assert rig.snapshot() == news[0] + rig.old[BLOCK_BYTES:]
    assert first.read(0, IMAGE_BYTES) == rig.old


def test_without_room_it_is_refused_as_a_write_is(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, policy=OverflowPolicy.BREAK_WRITE)
    rig.open()
    rig.engine.room.set_limit(2 * BLOCK_BYTES)
    with pytest.raises(BufferFull):
        rig.engine.zero(0, 8 * BLOCK_BYTES, give_back=True)
    assert rig.live() == OLD == rig.snapshot()


def test_what_the_image_cannot_do_changes_nothing(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = make_rig(OLD)
    rig.open()

    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(rig.files, "punch", refuse)
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        rig.engine.zero(0, 8 * BLOCK_BYTES, give_back=True)
    with pytest.raises(OutOfRange):
        rig.engine.zero(0, IMAGE_BYTES + 1, give_back=True)
    assert rig.live() == OLD == rig.snapshot()


def test_of_a_device_whole_sectors_are_given_back_and_the_edges_written(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig, given = make_rig(OLD), []
    monkeypatch.setattr(rig.image, "_is_device", True)
    monkeypatch.setattr(rig.files, "punch", lambda fd, offset, length: given.append((offset, length)))
    rig.image.zero(100, 3 * BLOCK_BYTES, give_back=True)
    rig.image.zero(6 * BLOCK_BYTES + 10, 20, give_back=True)
    assert given == [(BLOCK_BYTES, 2 * BLOCK_BYTES)]
    expected = bytearray(OLD)
    for start, stop in ((100, BLOCK_BYTES), (3 * BLOCK_BYTES, 3 * BLOCK_BYTES + 100)):
        expected[start:stop] = bytes(stop - start)
    expected[6 * BLOCK_BYTES + 10 : 6 * BLOCK_BYTES + 30] = bytes(20)
    assert rig.image_path.read_bytes() == expected


@pytest.mark.parametrize(("durability", "power"), [(Durability.PROCESS, False), (Durability.POWER, True)])
def test_stopped_at_every_change(make_rig: MakeRig, tmp_path: Path, durability: Durability, power: bool) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=durability, staging_slots=16)
    with recording(rig, tmp_path, power=power) as recorder:
        rig.open()
        recorder.arm()
        for number, (offset, length) in enumerate(DISCARDS, 1):
            rig.compactor.drain()
            rig.on_wake = rig.compactor.drain
            rig.engine.zero(offset, length, give_back=number != 2)
            recorder.progress.written = number
    assert len(recorder.moments) > 50
    for moment in recorder.moments:
        left = Rig(moment.directory, OLD, block_bytes=BLOCK_BYTES, durability=durability, staging_slots=16)
        found, written = left.image_path.read_bytes(), moment.progress.written
        states = [after(count) for count in range(0 if power else written, min(written + 1, len(DISCARDS)) + 1)]
        try:
            for at in range(0, IMAGE_BYTES, BLOCK_BYTES):
                block = slice(at, at + BLOCK_BYTES)
                assert found[block] in [state[block] for state in states], moment.number
            opened = left.open(moment.number.to_bytes(16, "little") if power else BOOT)
            assert opened.outcome is Outcome.CARRIED_ON
            assert left.snapshot() == OLD, moment.number
        finally:
            left.remove()
