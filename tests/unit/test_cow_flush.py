"""One flush for all who wait, and what its failure means; how waiting is noticed."""

from __future__ import annotations

import errno
import threading
import time

import pytest

from cow.live import pace as pace_module
from cow.live.durable import GroupFlush
from cow.live.pace import Pace


class Disk:
    """Flushes that last until told, and fail when told."""

    def __init__(self) -> None:
        self.count = 0
        self.gate = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.failing = False

    def flush(self) -> None:
        self.count += 1
        self.begun.release()
        assert self.gate.acquire(timeout=10)
        if self.failing:
            raise OSError(errno.ENOSPC, "full")


def wait_in_thread(group: GroupFlush, results: list[int]) -> threading.Thread:
    def work() -> None:
        try:
            group.wait()
            results.append(0)
        except OSError as error:
            results.append(error.errno or -1)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def wait_for_waiters(group: GroupFlush, count: int) -> None:
    deadline = time.monotonic() + 10
    while len(group._changed._waiters) < count:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_all_who_come_during_a_flush_share_the_next() -> None:
    disk, results = Disk(), list[int]()
    group = GroupFlush(disk.flush)
    first = wait_in_thread(group, results)
    assert disk.begun.acquire(timeout=10)
    others = [wait_in_thread(group, results) for _ in range(5)]
    wait_for_waiters(group, 5)
    disk.gate.release(2)
    for thread in (first, *others):
        thread.join(10)
    assert (disk.count, results) == (2, [0] * 6)


def test_a_failed_flush_fails_all_who_waited_for_it_and_no_other() -> None:
    disk, results = Disk(), list[int]()
    disk.failing = True
    group = GroupFlush(disk.flush)
    thread = wait_in_thread(group, results)
    disk.gate.release()
    thread.join(10)
    disk.failing = False
    thread = wait_in_thread(group, results)
    disk.gate.release()
    thread.join(10)
    assert results == [errno.ENOSPC, 0]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The time in ns, and how often this thread slept."""
    now = {"ns": 1_000_000_000, "sleeps": 0}
    usage = type("Usage", (), {"ru_nvcsw": property(lambda self: now["sleeps"])})()
    monkeypatch.setattr(pace_module.time, "monotonic_ns", lambda: now["ns"])
    monkeypatch.setattr(pace_module.resource, "getrusage", lambda who: usage)
    return now


def call(pace: Pace, clock: dict[str, int], took_ns: int, sleeps: int) -> None:
    started_ns = clock["ns"]
    assert pace.is_quick(started_ns)
    clock["ns"] += took_ns
    clock["sleeps"] += sleeps
    pace.note(started_ns)


def test_one_slow_call_is_no_waiting_disk(clock: dict[str, int]) -> None:
    pace = Pace()
    call(pace, clock, 50_000_000, 3)
    assert pace.is_quick(clock["ns"])


def test_two_slow_calls_that_slept_are(clock: dict[str, int]) -> None:
    pace = Pace()
    call(pace, clock, 50_000_000, 1)
    call(pace, clock, 50_000_000, 1)
    assert not pace.is_quick(clock["ns"])
    assert pace.is_quick(clock["ns"] + 1_000_000_000)


def test_a_busy_processor_is_no_waiting_disk(clock: dict[str, int]) -> None:
    pace = Pace()
    for _ in range(5):
        call(pace, clock, 50_000_000, 0)
    assert pace.is_quick(clock["ns"])
