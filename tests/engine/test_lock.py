"""The engine's lock is held for looking, claiming and counting: never over a system call, and never while an owner is
told something, who may write that down."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from engine_rig import Rig, pattern
from test_crash_cut import BLOCK_BYTES, OLD, STEPS

import cow.disk.files
import cow.disk.mapped_file
from cow.disk.filesystems import Storing, storing_on
from cow.disk.layout import Durability, State
from cow.errors import BufferFull
from cow.live.engine import LiveEngine
from cow.live.overflow import Event, EventKind, OverflowPolicy

CALLS = (
    *("open", "stat", "lstat", "fstat", "lseek", "scandir", "listdir", "read", "pread", "preadv", "write", "pwrite"),
    *("rename", "unlink", "mkdir", "rmdir", "ftruncate", "posix_fallocate", "fsync", "fdatasync"),
)
NEW = pattern(4 * BLOCK_BYTES, 7)
MakeRig = Callable[..., Rig]


@pytest.fixture(params=[Storing.MAPPED, Storing.WRITTEN])
def storing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Storing:
    real = storing_on
    monkeypatch.setattr(
        cow.disk.mapped_file, "storing_on", lambda fd: request.param if request.param is Storing.WRITTEN else real(fd)
    )
    found: Storing = request.param
    return found


@contextlib.contextmanager
def watched(rig: Rig) -> Iterator[list[str]]:
    """`rig` is open. Within this its engine tells `events` what it tells its owner; the calls made are counted."""
    calls: list[str] = []

    def check(name: str) -> None:
        calls.append(name)
        assert not rig.engine._lock.locked(), f"{name} with the lock held"

    def watching(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            check(name)
            return real(*arguments, **more)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, watching(name, getattr(os, name)))
        patch.setattr(cow.disk.mapped_file, "_seek", watching("lseek", cow.disk.mapped_file._seek))
        patch.setattr(cow.disk.files, "_libc", watching_punch(check))
        for teller in (rig.engine.room, rig.engine.ending):
            patch.setattr(teller, "_on_event", watching("on_event", rig.events.append))
        for waker in (rig.engine.ending, rig.engine.pressing, rig.engine._claiming):
            patch.setattr(waker, "_wake_compactor", lambda: check("wake"))
        yield calls


def watching_punch(check: Callable[[str], None]) -> Any:
    class Punching:
        @staticmethod
        def fallocate(*arguments: Any) -> Any:
            check("fallocate")
            return real.fallocate(*arguments)

    real = cow.disk.files._libc
    return Punching


def opened(make_rig: MakeRig, **choices: Any) -> Rig:
    rig = make_rig(OLD, staging_slots=16, **choices)
    # The rules are looked at by system calls, in between.
    rig.rules.are_kept = False
    rig.open()
    return rig


@pytest.mark.usefixtures("storing")
@pytest.mark.parametrize("durability", list(Durability))
def test_no_system_call_on_any_way(make_rig: MakeRig, durability: Durability) -> None:
    rig = opened(make_rig, durability=durability)
    with watched(rig) as calls:
        for step in STEPS:
            step.run(rig)
        rig.compactor.drain()
        rig.engine.rest()
        rig.engine.ending.note_damage(rig.cut.generation)
    assert "pwrite" in calls


@pytest.mark.usefixtures("storing")
@pytest.mark.parametrize("durability", list(Durability))
def test_no_system_call_while_a_snapshot_ends(make_rig: MakeRig, durability: Durability) -> None:
    rig = opened(make_rig, durability=durability)
    with watched(rig) as calls:
        rig.engine.room.set_limit(1)
        rig.engine.write(0, NEW)
    assert rig.numbers.state is State.OVERFLOWED
    assert [event.kind for event in rig.events] == [EventKind.OVERFLOW]
    assert {"on_event", "rename"} <= set(calls)


@pytest.mark.usefixtures("storing")
def test_no_system_call_while_a_write_is_refused(make_rig: MakeRig) -> None:
    rig = opened(make_rig, policy=OverflowPolicy.BREAK_WRITE)
    with watched(rig):
        rig.engine.room.set_limit(1)
        with pytest.raises(BufferFull):
            rig.engine.write(0, NEW)


@pytest.mark.usefixtures("storing")
def test_no_system_call_while_a_store_is_found_cut_short(make_rig: MakeRig) -> None:
    rig = opened(make_rig)
    with watched(rig):
        os.truncate(rig.cut.path / "index", 0)
        rig.engine.ending.look_at_store()
    assert [event.kind for event in rig.events] == [EventKind.CUT_SHORT]


@pytest.mark.usefixtures("storing")
@pytest.mark.parametrize("durability", list(Durability))
def test_no_system_call_while_a_block_is_lost(make_rig: MakeRig, durability: Durability) -> None:
    rig = make_rig(OLD, staging_slots=16, durability=durability)
    rig.rules.are_kept = False
    rig.spoil(1)
    rig.open()
    with watched(rig):
        rig.engine.write(0, NEW)
    assert [(event.kind, event.value) for event in rig.events] == [(EventKind.LOST, errno.EIO)]


def test_blocks_that_are_owed_wait_until_the_end_is_told(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = opened(make_rig)
    tried: list[bool] = []

    def told(event: Event) -> None:
        tried.append(rig.engine.try_write(8 * BLOCK_BYTES, NEW))

    monkeypatch.setattr(rig.engine.ending, "_on_event", told)
    rig.engine.room.set_limit(1)
    rig.engine.write(0, NEW)
    assert tried == [False]
    assert rig.live()[8 * BLOCK_BYTES : 12 * BLOCK_BYTES] == OLD[8 * BLOCK_BYTES : 12 * BLOCK_BYTES]
    assert LiveEngine.try_write(rig.engine, 8 * BLOCK_BYTES, NEW)
