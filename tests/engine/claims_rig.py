"""What comes in between two steps of whoever holds a claim on blocks.

Where it can, the thread that is interrupted does it itself (`interrupt`). Where somebody has to wait, that is done by
a thread beside it (`Beside`), as far as it gets.
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
from engine_rig import QuickFiles, Rig, pattern, wait_until

import cow.disk.mapped_file
import cow.live.engine
import cow.live.pace
import cow.live.relief
from cow.disk.files import Data
from cow.disk.filesystems import Storing
from cow.live.overflow import EventKind

BLOCK_BYTES = 4096
COUNT = 64
OLD = pattern(COUNT * BLOCK_BYTES)
NEW = pattern(BLOCK_BYTES, 7)
# No limit that is ever reached.
FAR_LIMIT = 1 << 40
MakeRig = Callable[..., Rig]


def be_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk would send every write the long way."""
    monkeypatch.setattr(cow.live.pace.Pace, "is_quick", lambda self, now_ns: True)


def store_without_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
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


def see_who_waits(monkeypatch: pytest.MonkeyPatch) -> Beside:
    """Of engines that are made later."""
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
