"""Stores whose filesystem copies pages whenever it writes them out: nothing is stored through a mapping there.

A disk that is full at any moment then refuses a system call, and the policy decides.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from engine_rig import CopiedImage, QuickFiles, Rig, pattern
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from stops import Recorder
from test_crash import WRITES, stop_everywhere
from test_model import ReliefMachine

import cow.disk.mapped_file
from cow.disk.filesystems import Storing, storing_on
from cow.disk.image import Identity
from cow.disk.layout import Durability
from cow.errors import BufferFull, SnapshotLost
from cow.live.overflow import OverflowPolicy

BLOCK_BYTES = 4096
OLD = pattern(64 * BLOCK_BYTES)
MakeRig = Callable[..., Rig]


@pytest.fixture(autouse=True)
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cow.disk.mapped_file, "storing_on", lambda fd: Storing.WRITTEN)


class DeviceImage(CopiedImage):
    """One that has no modification time: what is wrong in the store is not found out by that."""

    def identity(self) -> Identity:
        return replace(super().identity(), is_device=True, mtime_ns=0)


class FullAt(QuickFiles):
    """From its `first`-th write into the store to its `last`-th the disk has no room."""

    def __init__(self, first: int, last: int) -> None:
        self._first, self._last, self.count = first, last, 0
        self.armed = False

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        if self.armed and "/store/" in os.readlink(f"/proc/self/fd/{fd}"):
            self.count += 1
            if self._first <= self.count <= self._last:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super().pwrite(fd, data, offset)


def test_nothing_can_be_stored_through_the_mappings(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.open()
    assert rig.store is not None
    for file in (
        rig.store.staging.file,
        rig.cut.index.file,
        rig.control.file,
        *(map.file for map in rig.cut.bitmaps),
    ):
        with pytest.raises(TypeError):
            file.map[0] = 1


def test_written_maps_agree_with_two_byte_arrays() -> None:
    quick = settings(
        max_examples=12,
        stateful_step_count=40,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(ReliefMachine, settings=quick)


def three_writes(rig: Rig, recorder: Recorder) -> None:
    rig.open()
    recorder.progress.opened = True
    recorder.arm()
    for number, (offset, data) in enumerate(WRITES[:3], 1):
        rig.write(offset, data)
        recorder.progress.written = number
    rig.compactor.step()


def test_written_maps_killed_at_every_change(make_rig: MakeRig, tmp_path: Path) -> None:
    stop_everywhere(make_rig, tmp_path, Durability.PROCESS, three_writes, power=False)


@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize("policy", [OverflowPolicy.BREAK_SNAPSHOT, OverflowPolicy.BREAK_WRITE])
def test_a_disk_full_at_any_moment(tmp_path: Path, policy: OverflowPolicy, durability: Durability) -> None:
    number, reached = 1, True
    while reached:
        for last in (number, 10**9):
            directory = tmp_path / f"{number}-{last}"
            directory.mkdir()
            files = FullAt(number, last)
            rig = Rig(directory, OLD, policy=policy, durability=durability, staging_slots=16, files=files)
            try:
                fill_up(rig, files)
            finally:
                rig.remove()
        reached = files.count >= number
        number += 1
    assert number > 20


def fill_up(rig: Rig, files: FullAt) -> None:
    rig.image = DeviceImage(rig.image_fd, len(OLD), files)
    rig.open()
    files.armed = True
    # What a disk refuses between two steps of a write stays between them until the next opening.
    rig.rules.at_rest = False
    live = bytearray(OLD)
    for at, length in ((100, 50), (5 * BLOCK_BYTES, 3 * BLOCK_BYTES), (9 * BLOCK_BYTES + 7, BLOCK_BYTES)):
        data = pattern(length, at)
        with contextlib.suppress(BufferFull):
            if not rig.engine.try_write(at, data):
                rig.engine.write(at, data)
            live[at : at + length] = data
        with contextlib.suppress(OSError):
            rig.compactor.step()
    assert rig.live() == live
    is_lost = rig.policy is OverflowPolicy.BREAK_SNAPSHOT and files.count > 0
    check_snapshot(rig, may_be_lost=is_lost)
    rig.abandon()
    files.armed, rig.rules.at_rest = False, True
    rig.open()
    check_snapshot(rig, may_be_lost=is_lost)
    assert rig.image_path.read_bytes() == live


def check_snapshot(rig: Rig, *, may_be_lost: bool) -> None:
    try:
        assert rig.snapshot() == OLD
    except SnapshotLost:
        assert may_be_lost


def test_the_filesystems_are_told_apart(tmp_path: Path) -> None:
    found = set()
    for directory in (tmp_path, Path("/dev/shm"), Path("/proc")):
        fd = os.open(directory, os.O_RDONLY)
        found.add((directory, storing_on(fd)))
        os.close(fd)
    assert {(Path("/dev/shm"), Storing.RESERVED), (Path("/proc"), Storing.WRITTEN)} <= found
