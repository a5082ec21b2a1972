"""Claims on blocks, and what others do between any two steps of whoever holds one: the ends of snapshots, limits,
reliefs and cuts that come just then.

Where it can, the thread that is interrupted does itself what comes in between. Where somebody has to wait, that is
done by a thread beside it (`Beside`), as far as it gets.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from engine_rig import QuickFiles, Rig, pattern
from test_overflow import wait_until

import cow.disk.mapped_file
import cow.live.engine
import cow.live.heartbeat
import cow.live.pace
import cow.live.relief
import cow.live.traffic
from cow.disk.files import Data
from cow.disk.filesystems import Storing
from cow.disk.layout import Counter, CutCounter, Durability, State
from cow.disk.mapped_file import MappedFile
from cow.disk.numbers import CutNumbers
from cow.errors import BufferFull, SnapshotEnded
from cow.live.overflow import Event, EventKind, OverflowPolicy
from cow.live.relief import Relief
from cow.live.traffic import Gate

BLOCK_BYTES = 4096
COUNT = 64
OLD = pattern(COUNT * BLOCK_BYTES)
NEW = pattern(BLOCK_BYTES, 7)
# No limit that is ever reached.
FAR_LIMIT = 1 << 40
MakeRig = Callable[..., Rig]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    # A slow disk would send every write the long way.
    monkeypatch.setattr(cow.live.pace.Pace, "is_quick", lambda self, now_ns: True)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is stored through mappings."""
    monkeypatch.setattr(cow.disk.mapped_file, "storing_on", lambda fd: Storing.WRITTEN)


class RefusingFiles(QuickFiles):
    """A disk that refuses the next `left` writes to files with `name` in their path, and allocations of them."""

    def __init__(self, name: str) -> None:
        self._name, self.left, self.refused = name, 0, 0

    def _check(self, fd: int) -> None:
        if self.left and self._name in os.readlink(f"/proc/self/fd/{fd}"):
            self.left -= 1
            self.refused += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def pwrite(self, fd: int, data: Data, offset: int) -> None:
        self._check(fd)
        super().pwrite(fd, data, offset)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        self._check(fd)
        super().allocate(fd, offset, length)


class Beside:
    """Threads beside the one of the test. It is known who of all waits for somebody."""

    def __init__(self) -> None:
        self._waiting: set[int] = set()
        self._threads: list[threading.Thread] = []

    def run(self, work: Callable[[], object]) -> None:
        """In a thread of its own, as far as it gets now: to its end, or to where it waits for somebody."""
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()
        wait_until(lambda: not thread.is_alive() or self.waits(thread))

    def waits(self, thread: threading.Thread) -> bool:
        return thread.ident in self._waiting

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Within this the thread waits for somebody."""
        self._waiting.add(threading.get_ident())
        try:
            yield
        finally:
            self._waiting.remove(threading.get_ident())

    def join(self) -> None:
        """Until all have ended."""
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "it waits for ever"


class SeenLock:
    """A lock of which it is known who waits for it."""

    def __init__(self, beside: Beside) -> None:
        self._beside, self._lock = beside, threading.Lock()
        self.release, self.locked = self._lock.release, self._lock.locked

    def acquire(self, blocking: bool = True) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        if not blocking:
            return False
        with self._beside.waiting():
            return self._lock.acquire()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *raised: object) -> None:
        self.release()


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Beside:
    """For rigs that are opened later."""
    threads = Beside()
    made = SimpleNamespace(
        Lock=lambda: SeenLock(threads), Condition=threading.Condition, get_ident=threading.get_ident
    )
    for module in (cow.live.engine, cow.live.relief):
        monkeypatch.setattr(module, "threading", made)
    return threads


def interrupt(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, action: Callable[[], object]) -> None:
    """`action` happens just before `owner` does `name` for the first time, which it does without the lock."""
    real = getattr(owner, name)

    def interrupted(*arguments: Any, **more: Any) -> Any:
        monkeypatch.setattr(owner, name, real)
        action()
        return real(*arguments, **more)

    monkeypatch.setattr(owner, name, interrupted)


def opened(make_rig: MakeRig, *lost: int, **choices: Any) -> Rig:
    """The image cannot give the blocks `lost`."""
    rig = make_rig(OLD, **choices)
    if lost:
        rig.spoil(*lost)
    rig.open()
    return rig


def write(rig: Rig, block_no: int) -> None:
    rig.engine.write(block_no * BLOCK_BYTES, NEW)


def holds_new(rig: Rig, block_no: int) -> bool:
    return rig.engine.read(block_no * BLOCK_BYTES, BLOCK_BYTES) == NEW


def next_cut(rig: Rig) -> None:
    """Made, and nobody holds the one before."""
    rig.make_cut()
    rig.compactor.step()


def kinds(rig: Rig) -> list[EventKind]:
    return [event.kind for event in rig.events]


# --- waiting for room ----------------------------------------------------------------------------------------------


def refused_writes(rig: Rig, files: RefusingFiles, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the disk refuses a write that waits for room, until there is some. Others claim blocks meanwhile."""
    write(rig, COUNT - 1)
    monkeypatch.setattr(cow.live.traffic, "_LOOK_AGAIN_S", 60)
    waits = 0

    def wait(gate: Gate, timeout_s: float | None = None) -> None:
        nonlocal waits
        waits += 1
        if waits < 5:
            # As the end of another's claim does.
            gate.tell()
            return
        files.left = 0
        gate._changed.release()
        rig.engine.room.look_again()
        gate._changed.acquire()

    monkeypatch.setattr(Gate, "wait", wait)
    files.left = 5
    write(rig, 0)
    assert holds_new(rig, 0)
    assert rig.snapshot() == OLD
    return files.refused


def test_the_end_of_a_refused_claim_wakes_no_write_that_waits_for_room(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RefusingFiles("/segments/")
    rig = opened(make_rig, policy=OverflowPolicy.WAIT, durability=Durability.POWER, files=files)
    assert refused_writes(rig, files, monkeypatch) == 1


@pytest.mark.usefixtures("written")
def test_nor_does_it_where_the_ring_is_written(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    files = RefusingFiles("/staging")
    rig = opened(make_rig, policy=OverflowPolicy.WAIT, files=files)
    assert refused_writes(rig, files, monkeypatch) == 1


@pytest.mark.parametrize("policy", list(OverflowPolicy))
def test_a_write_that_preserves_nothing_takes_no_ring(make_rig: MakeRig, policy: OverflowPolicy) -> None:
    files = RefusingFiles("/staging")
    rig = opened(make_rig, policy=policy, files=files)
    rig.settle_free([(0, COUNT)])
    files.left = 5
    write(rig, 0)
    assert files.refused == 0
    assert holds_new(rig, 0)
    assert rig.numbers.state is State.ACTIVE
    assert rig.store is not None
    assert not rig.store.staging.takes_space


def test_a_write_that_is_told_to_wait_gets_out_before_the_end(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = opened(make_rig, policy=OverflowPolicy.WAIT)

    def told(event: Event) -> None:
        rig.events.append(event)
        rig.engine.room.stop_waiting(compactor_is_gone=True)

    monkeypatch.setattr(rig.engine.room, "_on_event", told)
    rig.engine.room.set_limit(1)
    write(rig, 0)
    assert holds_new(rig, 0)
    assert kinds(rig) == [EventKind.WAITING, EventKind.OVERFLOW]


# --- limits --------------------------------------------------------------------------------------------------------


def test_a_limit_may_go_while_a_write_looks_at_it(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = opened(make_rig)
    write(rig, 1)
    rig.engine.room.set_limit(FAR_LIMIT)
    real = rig.engine.room._look_at_limit

    def look(limit_bytes: int) -> None:
        rig.engine.room.set_limit(0)
        real(limit_bytes)

    monkeypatch.setattr(rig.engine.room, "_look_at_limit", look)
    rig.write(0, NEW)
    assert rig.control[Counter.LIMIT_BYTES] == 0
    assert holds_new(rig, 0)


@pytest.mark.parametrize(
    ("policy", "owner", "step"),
    [
        (OverflowPolicy.BREAK_WRITE, "room", "give_way"),
        (OverflowPolicy.BREAK_SNAPSHOT, "room", "give_way"),
        (OverflowPolicy.BREAK_SNAPSHOT, "ending", "_begin_end"),
    ],
)
def test_nobody_gives_way_to_a_limit_that_was_raised(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, policy: OverflowPolicy, owner: str, step: str
) -> None:
    rig = opened(make_rig, policy=policy)
    rig.engine.room.set_limit(1)
    interrupt(monkeypatch, getattr(rig.engine, owner), step, lambda: rig.engine.room.set_limit(0))
    write(rig, 0)
    assert rig.control[Counter.LIMIT_BYTES] == 0
    assert holds_new(rig, 0)
    assert rig.events == []
    assert rig.snapshot() == OLD


# --- the end of a snapshot -----------------------------------------------------------------------------------------


def test_damage_that_is_found_at_the_end_brings_no_snapshot_back(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, beside: Beside
) -> None:
    rig = opened(make_rig)
    writer, real = threading.current_thread(), CutNumbers.state

    def state(numbers: CutNumbers) -> State:
        found: State = real.__get__(numbers)
        if threading.current_thread() is not writer:
            # The writer goes on with the end, to where he has to wait.
            with beside.waiting():
                wait_until(lambda: beside.waits(writer))
        return found

    def told(event: Event) -> None:
        rig.events.append(event)
        beside.run(lambda: rig.engine.ending.note_damage(rig.cut.generation))

    monkeypatch.setattr(CutNumbers, "state", property(state))
    monkeypatch.setattr(rig.engine.ending, "_on_event", told)
    rig.engine.room.set_limit(1)
    write(rig, 0)
    beside.join()
    assert kinds(rig) == [EventKind.OVERFLOW]
    assert rig.numbers[CutCounter.DAMAGED_READS] == 1
    assert rig.numbers.state is State.OVERFLOWED
    assert not rig.numbers.is_kept


def test_a_look_at_the_store_takes_no_whole_cut_for_a_short_one(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = opened(make_rig)
    write(rig, 0)
    before, real = rig.cut, MappedFile.is_whole
    files = [before.settled.file]

    def is_whole(file: MappedFile) -> bool:
        if file in files:
            files.remove(file)
            next_cut(rig)
        found: bool = real.__get__(file)
        return found

    monkeypatch.setattr(MappedFile, "is_whole", property(is_whole))
    rig.engine.ending.look_at_store()
    assert rig.cut is not before
    assert rig.events == []
    assert rig.cut.is_intact
    assert rig.snapshot() == rig.live()


@pytest.mark.usefixtures("written")
def test_damage_may_be_found_while_the_next_cut_is_made(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = opened(make_rig)
    before = rig.cut
    interrupt(monkeypatch, before.numbers, "keep", lambda: next_cut(rig))
    rig.engine.ending.note_damage(before.generation)
    assert rig.cut is not before
    assert rig.numbers[CutCounter.DAMAGED_READS] == 0
    assert rig.numbers.state is State.ACTIVE


def test_what_a_beat_found_is_not_forgotten_by_a_look_under_way(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = opened(make_rig)
    write(rig, 0)
    # No write from here on has a beat of its own.
    monkeypatch.setattr(cow.live.heartbeat, "_BEAT_NS", 1 << 62)
    real = rig.engine.ending._is_cut_short

    def look_too_early() -> bool:
        is_short = real()
        os.truncate(rig.cut.path / "index", 0)
        rig.engine._beat()
        return is_short

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.engine.ending, "_is_cut_short", look_too_early)
        rig.engine.ending.look_at_store()
    assert not rig.engine.try_write(0, NEW)
    write(rig, 0)
    assert kinds(rig) == [EventKind.CUT_SHORT]
    assert holds_new(rig, 0)


def test_a_beat_suspects_nothing_of_a_store_that_is_known_to_be_short(make_rig: MakeRig) -> None:
    rig = opened(make_rig)
    write(rig, 0)
    os.truncate(rig.cut.path / "index", 0)
    rig.engine.ending.look_at_store()
    rig.engine._beat()
    assert rig.engine.try_write(0, NEW)


# --- lost blocks ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("written")
def test_a_block_that_is_lost_is_counted_and_told_when_the_disk_refuses_the_rest(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RefusingFiles("/changed")
    rig = opened(make_rig, 1, policy=OverflowPolicy.WAIT, files=files)
    monkeypatch.setattr(cow.live.traffic, "_LOOK_AGAIN_S", 0.001)
    # Allocates the page of their bits, which is refused later.
    write(rig, COUNT - 1)
    files.left = 1
    write(rig, 1)
    assert files.refused == 1
    assert rig.numbers.lost_blocks == 1
    assert rig.numbers.state is State.DAMAGED
    assert kinds(rig) == [EventKind.LOST, EventKind.WAITING]


@pytest.mark.usefixtures("written")
def test_what_is_settled_is_counted_when_the_disk_refuses_the_rest(make_rig: MakeRig) -> None:
    files = RefusingFiles("/changed")
    rig = opened(make_rig, policy=OverflowPolicy.BREAK_WRITE, files=files)
    write(rig, COUNT - 1)
    files.left = 1
    with pytest.raises(BufferFull):
        write(rig, 0)
    assert not holds_new(rig, 0)
    assert rig.numbers[CutCounter.SETTLED_BLOCKS] == rig.cut.settled.count()
    assert rig.numbers[CutCounter.PRESERVED_BLOCKS] == rig.cut.index.count()


def test_the_owner_is_told_of_a_lost_block_before_it_is_written(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, beside: Beside
) -> None:
    rig = opened(make_rig, 1)
    rig.engine.room.set_limit(FAR_LIMIT)
    writer, told_when_written = threading.current_thread(), list[EventKind]()
    real_look, real_write = rig.engine.room._look_at_limit, rig.image.write
    is_written = threading.Event()

    def look(limit_bytes: int) -> None:
        if threading.current_thread() is writer:
            beside.run(lambda: write(rig, 9))
        real_look(limit_bytes)

    def told(event: Event) -> None:
        if threading.current_thread() is not writer:
            # This owner takes his time.
            with beside.waiting():
                is_written.wait(10)
        rig.events.append(event)

    def write_image(data: Data, offset: int) -> None:
        if threading.current_thread() is writer:
            told_when_written.extend(kinds(rig))
            is_written.set()
        real_write(data, offset)

    monkeypatch.setattr(rig.engine.room, "_look_at_limit", look)
    monkeypatch.setattr(rig.engine.room, "_on_event", told)
    monkeypatch.setattr(rig.image, "write", write_image)
    write(rig, 1)
    beside.join()
    assert told_when_written == [EventKind.LOST]
    assert holds_new(rig, 9)


def test_a_lost_block_is_excused_once(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, beside: Beside) -> None:
    rig = opened(make_rig, 1, 9)
    write(rig, 1)
    real = Relief._count_lost

    def count_lost(relief: Relief, first: int, end: int, **more: bool) -> int:
        if first == 3:
            monkeypatch.setattr(Relief, "_count_lost", real)
            # It is free, which nobody knows yet.
            beside.run(lambda: rig.engine.cuts.release(1, 2))
        return real(relief, first, end, **more)

    monkeypatch.setattr(Relief, "_count_lost", count_lost)
    rig.settle_free([(1, 2), (3, 4)])
    beside.join()
    assert rig.cut.released.get(1)
    assert rig.numbers[CutCounter.EXCUSED_BLOCKS] == 1
    write(rig, 9)
    assert rig.numbers.lost_blocks == 1


def test_a_free_block_that_is_just_being_lost_is_not_missed(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = opened(make_rig, 5)
    assert rig.numbers.state is State.ACTIVE
    # It is settled by then, and counted later.
    interrupt(monkeypatch, rig.cut.changed, "count_set", lambda: rig.settle_free([(0, 10)]))
    write(rig, 5)
    assert rig.numbers[CutCounter.FREE_BLOCKS] == 10
    assert rig.numbers.lost_blocks == 0
    assert rig.numbers.state is State.ACTIVE


# --- reliefs -------------------------------------------------------------------------------------------------------


def test_no_claim_is_left_by_a_relief_that_fails(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = opened(make_rig, 1)
    write(rig, 1)

    def fail(*arguments: object, **more: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(cow.live.relief, "count_lost", fail)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            rig.settle_free([(0, 10)])
    assert not rig.engine._claiming.claims
    write(rig, 5)
    assert rig.settle_free([]) == 8


def test_a_release_leaves_out_nothing_that_is_just_found_to_be_free(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, beside: Beside
) -> None:
    rig = opened(make_rig)
    interrupt(
        monkeypatch, rig.cut.settled, "set_range", lambda: beside.run(lambda: rig.engine.cuts.release(0, COUNT))
    )
    rig.settle_free([(0, 10)])
    beside.join()
    assert rig.numbers[CutCounter.RELEASED_BLOCKS] == rig.cut.released.count() == COUNT


@pytest.mark.parametrize("work", ["settle_free", "release"])
def test_what_claims_blocks_of_the_cut_before_claims_none_of_the_next(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    rig = opened(make_rig)
    counts: list[int] = []

    def relieve_the_next() -> None:
        rig.make_cut()
        counts.append(rig.settle_free([(0, 10)]) if work == "settle_free" else rig.engine.cuts.release(0, 10))

    interrupt(monkeypatch, rig.cut.released, "set_range", relieve_the_next)
    with pytest.raises(SnapshotEnded):
        rig.engine.cuts.release(0, COUNT)
    assert counts == [10]
    assert rig.numbers[CutCounter.SETTLED_BLOCKS] == 10
    write(rig, 20)
    assert rig.numbers[CutCounter.PRESERVED_BLOCKS] == 1
