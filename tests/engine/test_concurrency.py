"""Writers, the compactor and readers at the same time: nothing stale, nothing torn."""

from __future__ import annotations

import os
import random
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest
from engine_rig import QuickFiles, Rig

from cow.disk.image import Image
from cow.disk.layout import Durability
from cow.disk.store import open_reader
from cow.snapshot import SnapshotReader

SECTOR = struct.Struct("<QQ")
SECTOR_BYTES = 512
BLOCK_BYTES = 4096
BLOCKS = 1024
IMAGE_BYTES = BLOCKS * BLOCK_BYTES
MakeRig = Callable[..., Rig]


def sector(number: int, version: int) -> bytes:
    """A sector that says which it is and what was written last."""
    return SECTOR.pack(number, version) * (SECTOR_BYTES // SECTOR.size)


def sectors(first: int, count: int, version: int) -> bytes:
    return b"".join(sector(number, version) for number in range(first, first + count))


OLD = sectors(0, IMAGE_BYTES // SECTOR_BYTES, 0)


class Writer(threading.Thread):
    """Rewrites its own sectors at random (every `of`-th run of them) and knows what they must hold."""

    def __init__(self, rig: Rig, number: int, of: int, writes: int) -> None:
        super().__init__()
        self._rig, self._number, self._of, self._writes = rig, number, of, writes
        self.versions: dict[int, int] = {}
        self.failure: str | None = None

    def run(self) -> None:
        try:
            self._run(random.Random(self._number))
        except BaseException:
            self.failure = traceback.format_exc()

    def _run(self, rng: random.Random) -> None:
        # Runs of 3 sectors, dealt in turn: blocks are shared by writers, sectors are not.
        for version in range(1, self._writes + 1):
            run = rng.randrange(IMAGE_BYTES // SECTOR_BYTES // 3 // self._of) * self._of + self._number
            first, count = run * 3, rng.randint(1, 3)
            data = sectors(first, count, version)
            if rng.random() < 0.5 or not self._rig.engine.try_write(first * SECTOR_BYTES, data):
                self._rig.engine.write(first * SECTOR_BYTES, data)
            self.versions.update(dict.fromkeys(range(first, first + count), version))
            if rng.random() < 0.05:
                number = rng.choice(list(self.versions))
                found = self._rig.engine.read(number * SECTOR_BYTES, SECTOR_BYTES)
                assert found == sector(number, self.versions[number])


class Compacting(threading.Thread):
    """Steps until told to stop, and wakes writers that wait for room."""

    def __init__(self, rig: Rig) -> None:
        super().__init__()
        self._rig, self.stopped = rig, threading.Event()

    def run(self) -> None:
        compactor = self._rig.compactor
        while not self.stopped.is_set():
            if compactor.step():
                self._rig.engine.room.look_again()
            else:
                self.stopped.wait(0.0005)


@contextmanager
def reading_in_another_process(rig: Rig, seed: int) -> Iterator[None]:
    """A process that verifies the snapshot over and over; at the end it must have found nothing wrong."""
    told, tell = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.close(tell)
            verify_until_told(rig, told, random.Random(seed))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(told)
    try:
        yield
    finally:
        os.close(tell)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the snapshot was read wrong"


def verify_until_told(rig: Rig, told: int, rng: random.Random) -> None:
    os.set_blocking(told, False)
    store = open_reader(rig.store_path, QuickFiles())
    reader = SnapshotReader(store, Image(os.open(rig.image_path, os.O_RDONLY), IMAGE_BYTES, QuickFiles()))
    while True:
        for _ in range(50):
            offset = rng.randrange(IMAGE_BYTES)
            length = min(rng.choice([1, 5000, 70_000, 300_000]), IMAGE_BYTES - offset)
            view = memoryview(bytearray(length))
            if not reader.try_read(view, offset):
                reader.read_into(view, offset)
            assert view == OLD[offset : offset + length], f"{length} bytes at {offset}"
        try:
            if not os.read(told, 1):
                return
        except BlockingIOError:
            continue


def run_writers(writers: Sequence[Writer]) -> None:
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert not writer.is_alive(), "a writer hangs"
        assert writer.failure is None, writer.failure


@pytest.mark.parametrize("durability", list(Durability))
def test_writers_compactor_and_readers_at_once(make_rig: MakeRig, durability: Durability) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=durability, staging_slots=64)
    rig.open()
    compacting = Compacting(rig)
    writers = [Writer(rig, number, 4, 1500) for number in range(4)]
    with reading_in_another_process(rig, 1), reading_in_another_process(rig, 2):
        compacting.start()
        try:
            run_writers(writers)
        finally:
            compacting.stopped.set()
            compacting.join()
    check_end(rig, writers)


class SlowFiles(QuickFiles):
    """Reads that take their time, so that others come in between."""

    def __init__(self) -> None:
        self._rng = random.Random(5)

    def read_into(self, fd: int, views: Sequence[memoryview], offset: int) -> None:
        time.sleep(self._rng.random() * 0.002)
        super().read_into(fd, views, offset)


class SlowImage(Image):
    """An image that is often not in the page cache."""

    def __init__(self, fd: int, size_bytes: int, files: QuickFiles) -> None:
        super().__init__(fd, size_bytes, files)
        self._rng = random.Random(6)

    def try_read_into(self, views: list[memoryview], offset: int) -> bool:
        return self._rng.random() < 0.5 and super().try_read_into(views, offset)


@pytest.mark.parametrize("durability", list(Durability))
def test_quick_and_waiting_writes_meet_on_one_block(make_rig: MakeRig, durability: Durability) -> None:
    rig = make_rig(OLD, block_bytes=64 * 1024, durability=durability, staging_slots=16, files=SlowFiles())
    rig.image = SlowImage(rig.image_fd, IMAGE_BYTES, rig.files)
    rig.open()
    compacting = Compacting(rig)
    writers = [Writer(rig, number, 3, 300) for number in range(3)]
    compacting.start()
    try:
        run_writers(writers)
    finally:
        compacting.stopped.set()
        compacting.join()
    check_end(rig, writers)


def check_end(rig: Rig, writers: Sequence[Writer]) -> None:
    assert rig.snapshot() == OLD
    rig.compactor.drain()
    assert rig.snapshot() == OLD
    live = bytearray(OLD)
    for writer in writers:
        for number, version in writer.versions.items():
            live[number * SECTOR_BYTES : (number + 1) * SECTOR_BYTES] = sector(number, version)
    assert rig.live() == live
    # Nothing was reserved and forgotten.
    assert rig.engine.size.staged_bytes() == 0
