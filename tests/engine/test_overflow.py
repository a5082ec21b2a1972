"""A full side buffer: each policy gives way as it says, and live data is whole under all of them."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from engine_rig import QuickFiles, Rig, wait_until

from cow.disk.layout import Counter, Durability, State
from cow.errors import BufferFull, EngineClosed, SnapshotLost
from cow.live.overflow import EventKind, OverflowPolicy

BLOCK_BYTES = 4096
LIMIT_BLOCKS, MORE_BLOCKS = 48, 16
OLD = random.Random(7).randbytes((LIMIT_BLOCKS + MORE_BLOCKS) * BLOCK_BYTES)
NEW = random.Random(8).randbytes(len(OLD))
MakeRig = Callable[..., Rig]
BOTH = pytest.mark.parametrize("durability", list(Durability))


class RefusingFiles(QuickFiles):
    """A disk that refuses what is appended to segments, allocated for maps or flushed, once `code` is set."""

    def __init__(self, refused: str) -> None:
        self._refused, self.code = refused, 0

    def _refuse(self, call: str) -> None:
        if self.code and call == self._refused:
            raise OSError(self.code, os.strerror(self.code))

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if "/segments/" in path:
            self._refuse("append")
        elif "/cut-" in path:
            self._refuse("allocate")
        super().pwrite(fd, data, offset)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        self._refuse("allocate")
        super().allocate(fd, offset, length)

    def sync_data(self, fd: int) -> None:
        self._refuse("flush")
        super().sync_data(fd)


def limited(make_rig: MakeRig, policy: OverflowPolicy, durability: Durability, **options: object) -> Rig:
    rig = make_rig(OLD, policy=policy, durability=durability, **options)
    rig.open()
    rig.engine.room.set_limit(LIMIT_BLOCKS * BLOCK_BYTES)
    return rig


def write_blocks(rig: Rig, first: int, end: int) -> None:
    for block_no in range(first, end):
        at = block_no * BLOCK_BYTES
        rig.compactor.drain()
        rig.write(at, NEW[at : at + BLOCK_BYTES])


@BOTH
@pytest.mark.parametrize("policy", list(OverflowPolicy))
def test_what_just_fits_does_not_overflow(make_rig: MakeRig, policy: OverflowPolicy, durability: Durability) -> None:
    rig = limited(make_rig, policy, durability)
    write_blocks(rig, 0, LIMIT_BLOCKS)
    rig.compactor.drain()
    assert rig.snapshot() == OLD
    assert rig.numbers.state is State.ACTIVE


@BOTH
def test_break_snapshot_ends_the_snapshot_and_writes_go_on(make_rig: MakeRig, durability: Durability) -> None:
    rig = limited(make_rig, OverflowPolicy.BREAK_SNAPSHOT, durability)
    write_blocks(rig, 0, LIMIT_BLOCKS + MORE_BLOCKS)
    assert rig.live() == NEW
    assert [event.value for event in rig.events if event.kind is EventKind.OVERFLOW] == [errno.ENOSPC]
    with pytest.raises(SnapshotLost, match="overflowed"):
        rig.snapshot()
    assert not rig.cut.is_intact


@BOTH
def test_an_overflowed_snapshot_gives_its_space_back(make_rig: MakeRig, durability: Durability) -> None:
    rig = limited(make_rig, OverflowPolicy.BREAK_SNAPSHOT, durability)
    write_blocks(rig, 0, LIMIT_BLOCKS + 1)
    rig.compactor.drain()
    rig.compactor.tidy()
    assert rig.cut.segments.numbers() == []


@BOTH
def test_an_overflowed_snapshot_stays_overflowed(make_rig: MakeRig, durability: Durability) -> None:
    rig = limited(make_rig, OverflowPolicy.BREAK_SNAPSHOT, durability)
    write_blocks(rig, 0, LIMIT_BLOCKS + 1)
    rig.abandon()
    assert rig.open().notes == []
    assert rig.numbers.state is State.OVERFLOWED


@BOTH
def test_break_write_fails_the_write_and_keeps_the_snapshot(make_rig: MakeRig, durability: Durability) -> None:
    rig = limited(make_rig, OverflowPolicy.BREAK_WRITE, durability)
    write_blocks(rig, 0, LIMIT_BLOCKS)
    for block_no in range(LIMIT_BLOCKS, LIMIT_BLOCKS + MORE_BLOCKS):
        with pytest.raises(BufferFull) as caught:
            write_blocks(rig, block_no, block_no + 1)
        assert caught.value.errno == errno.ENOSPC
    edge = LIMIT_BLOCKS * BLOCK_BYTES
    assert rig.live() == NEW[:edge] + OLD[edge:]
    assert rig.snapshot() == OLD


@BOTH
def test_wait_goes_on_when_the_limit_is_raised(make_rig: MakeRig, durability: Durability) -> None:
    rig = limited(make_rig, OverflowPolicy.WAIT, durability)
    write_blocks(rig, 0, LIMIT_BLOCKS)
    rig.compactor.drain()
    at = LIMIT_BLOCKS * BLOCK_BYTES
    writer = threading.Thread(target=rig.engine.write, args=(at, NEW[at : at + BLOCK_BYTES]))
    writer.start()
    wait_until(lambda: any(event.kind is EventKind.WAITING for event in rig.events))
    assert rig.engine.read(at, BLOCK_BYTES) == OLD[at : at + BLOCK_BYTES]
    assert rig.engine.try_write(0, NEW[:BLOCK_BYTES])
    rig.engine.room.set_limit(0)
    writer.join(10)
    assert not writer.is_alive()
    assert rig.live() == NEW[: at + BLOCK_BYTES] + OLD[at + BLOCK_BYTES :]
    assert rig.snapshot() == OLD


@BOTH
def test_a_waiting_write_ends_with_the_engine(make_rig: MakeRig, durability: Durability) -> None:
    rig = limited(make_rig, OverflowPolicy.WAIT, durability)
    rig.engine.room.set_limit(1)
    failures: list[type[BaseException]] = []

    def write() -> None:
        try:
            rig.engine.write(0, b"new")
        except EngineClosed as error:
            failures.append(type(error))

    writer = threading.Thread(target=write)
    writer.start()
    wait_until(lambda: bool(rig.events))
    rig.engine.close()
    writer.join(10)
    assert failures == [EngineClosed]
    assert rig.live() == OLD


@BOTH
def test_stop_waiting_lets_live_data_out(make_rig: MakeRig, durability: Durability) -> None:
    rig = limited(make_rig, OverflowPolicy.WAIT, durability)
    rig.engine.room.set_limit(1)
    writer = threading.Thread(target=rig.engine.write, args=(0, NEW))
    writer.start()
    wait_until(lambda: bool(rig.events))
    rig.engine.room.stop_waiting()
    writer.join(10)
    assert rig.live() == NEW
    assert rig.numbers.state is State.OVERFLOWED


@BOTH
def test_warnings_come_once_at_80_90_and_95_percent(make_rig: MakeRig, durability: Durability) -> None:
    rig = limited(make_rig, OverflowPolicy.BREAK_SNAPSHOT, durability)
    write_blocks(rig, 0, LIMIT_BLOCKS)
    assert [event.value for event in rig.events if event.kind is EventKind.BUFFER_FILLING] == [80, 90, 95]


def test_a_warning_comes_again_after_five_percent_less(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = limited(make_rig, OverflowPolicy.BREAK_SNAPSHOT, Durability.PROCESS)
    told: list[tuple[int, int]] = []
    for percent in (79, 80, 85, 76, 81, 75, 80, 96, 91, 90, 95):
        monkeypatch.setattr(rig.engine.size, "percent_of", lambda limit_bytes, now=percent: now)
        before = len(rig.events)
        rig.engine.room.note_preserved(SimpleNamespace(lost=()))
        told += [(percent, event.value) for event in rig.events[before:]]
    assert told == [(80, 80), (80, 80), (96, 95), (95, 95)]


def test_the_same_limit_once_more_is_no_reason_to_warn_again(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = limited(make_rig, OverflowPolicy.BREAK_SNAPSHOT, Durability.PROCESS)
    room, limit_bytes = rig.engine.room, rig.control[Counter.LIMIT_BYTES]
    monkeypatch.setattr(rig.engine.size, "percent_of", lambda limit_bytes: 80)
    for new_bytes in (limit_bytes, limit_bytes, limit_bytes + 1):
        room.set_limit(new_bytes)
        room.note_preserved(SimpleNamespace(lost=()))
    assert [event.value for event in rig.events] == [80, 80]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(
    ("durability", "refused"),
    [
        (Durability.PROCESS, "append"),
        (Durability.PROCESS, "allocate"),
        (Durability.POWER, "append"),
        (Durability.POWER, "allocate"),
        (Durability.POWER, "flush"),
    ],
)
@pytest.mark.parametrize("policy", list(OverflowPolicy))
def test_a_refusing_disk_is_as_a_limit(
    make_rig: MakeRig, policy: OverflowPolicy, durability: Durability, refused: str, code: int
) -> None:
    files = RefusingFiles(refused)
    rig = make_rig(OLD, policy=policy, durability=durability, staging_slots=16, files=files)
    rig.open()
    files.code = code
    done, refusals = 0, []

    def write() -> None:
        nonlocal done
        try:
            for block_no in range(LIMIT_BLOCKS):
                at = block_no * BLOCK_BYTES
                rig.engine.write(at, NEW[at : at + BLOCK_BYTES])
                done = block_no + 1
        except BufferFull as full:
            refusals.append(full.errno)

    writer = threading.Thread(target=write)
    writer.start()
    compact_until(rig, lambda: not writer.is_alive() or any(e.kind is EventKind.WAITING for e in rig.events))
    if policy is OverflowPolicy.WAIT:
        files.code = 0
        compact_until(rig, lambda: not writer.is_alive())
    writer.join(10)
    assert refusals == ([code] if policy is OverflowPolicy.BREAK_WRITE else [])
    edge = done * BLOCK_BYTES
    assert rig.live() == NEW[:edge] + OLD[edge:]
    if policy in (OverflowPolicy.BREAK_SNAPSHOT, OverflowPolicy.BREAK_OLDEST):
        assert done == LIMIT_BLOCKS
        assert rig.numbers.state is State.OVERFLOWED
    else:
        assert (done == LIMIT_BLOCKS) == (policy is OverflowPolicy.WAIT)
        assert rig.snapshot() == OLD


def compact_until(rig: Rig, condition: Callable[[], bool]) -> None:
    def look() -> bool:
        with contextlib.suppress(OSError):
            rig.compactor.step()
        rig.engine.room.look_again()
        return condition()

    wait_until(look)


class OneFailingFlush(QuickFiles):
    """The first flush waits for `gate` and fails; the kernel reports a lost page once, so the next succeed."""

    def __init__(self) -> None:
        self.begun, self.gate = threading.Event(), threading.Event()

    def sync_data(self, fd: int) -> None:
        if not self.begun.is_set():
            self.begun.set()
            assert self.gate.wait(10)
            raise OSError(errno.EIO, "lost")


def test_a_failed_flush_is_believed_of_every_record_before_it(make_rig: MakeRig) -> None:
    files = OneFailingFlush()
    rig = make_rig(OLD, policy=OverflowPolicy.BREAK_WRITE, durability=Durability.POWER, files=files)
    rig.open()
    refusals: list[int] = []

    def write(block_no: int) -> None:
        try:
            rig.engine.write(block_no * BLOCK_BYTES, NEW[:BLOCK_BYTES])
        except BufferFull as full:
            refusals.append(full.errno)

    writers = [threading.Thread(target=write, args=(block_no,)) for block_no in (0, 9)]
    writers[0].start()
    assert files.begun.wait(10)
    segment = rig.cut.segments.path(1)
    size_bytes = segment.stat().st_size
    writers[1].start()
    wait_until(lambda: segment.stat().st_size > size_bytes)
    files.gate.set()
    for writer in writers:
        writer.join(10)
    assert refusals == [errno.EIO, errno.EIO]
    assert rig.live() == OLD
    write(9)
    assert rig.cut.segments.numbers() == [1, 2]
    assert rig.snapshot() == OLD


def test_the_compactor_is_pressed_until_no_write_waits(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, staging_slots=16)
    rig.open()
    rig.compactor._step_slots = 4
    for block_no in range(16):
        rig.engine.write(block_no * BLOCK_BYTES, NEW[:BLOCK_BYTES])
    waiting = [
        threading.Thread(target=rig.engine.write, args=(at * BLOCK_BYTES, NEW[: 4 * BLOCK_BYTES]), daemon=True)
        for at in (16, 20)
    ]
    for thread in waiting:
        thread.start()
    wait_until(lambda: len(rig.engine.pressing.threads) == 2)
    for left in (1, 0):
        rig.compactor.step()
        rig.engine.room.look_again()
        wait_until(lambda left=left: sum(thread.is_alive() for thread in waiting) == left)  # type: ignore[misc]
        assert rig.control[Counter.PRESSED] == left
