"""Every request to the disk that holds the store fails with EIO, for good: an overflow, and live data stay whole."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from command_line import Bench, mounted, run, small_filesystem, snapfs, wait_until
from writers import MIB, random_file, write_all, writing

RING_BYTES = 64 * MIB
# Of ext4, <linux/ext4.h>: the filesystem refuses everything from then on, without writing its journal out.
EXT4_IOC_SHUTDOWN, WITHOUT_LOG = 0x8004587D, 2


class Disk:
    """An ext4 on a loop device, whose file lies on another ext4 that can be shut down under it."""

    def __init__(self, below: Path, point: Path) -> None:
        self._below, self.store = below, point / "store"

    def fail(self) -> None:
        fd = os.open(self._below, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, WITHOUT_LOG.to_bytes(4, "little"))
        finally:
            os.close(fd)


@pytest.fixture
def disk(bench: Bench) -> Iterator[Disk]:
    with ExitStack() as stack:
        below = stack.enter_context(small_filesystem(bench.path, 160 * MIB))
        backing = below / "disk"
        with backing.open("wb") as file:
            file.truncate(144 * MIB)
        run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", backing)
        point = stack.enter_context(mounted(backing, bench.path / "failing", "-o", "loop"))
        stack.callback(bench.end_processes)
        yield Disk(below, point)


@pytest.fixture
def frozen(bench: Bench) -> bytes:
    bench.image.write_bytes(os.urandom(RING_BYTES + 8 * MIB))
    return bench.image.read_bytes()


@pytest.fixture
def new(bench: Bench, frozen: bytes) -> Path:
    """More than the ring can hold."""
    return random_file(bench.path / "new.bin", len(frozen))


def options(disk: Disk, policy: str) -> list[str]:
    return ["--store", str(disk.store), f"--on-overflow={policy}", "--cache=writethrough"]


def test_break_snapshot_gives_up_the_snapshot_only(bench: Bench, disk: Disk, new: Path) -> None:
    bench.mount(*options(disk, "break-snapshot")).ok()
    disk.fail()
    assert write_all(bench.live_file, new)[0] == "synced"
    assert bench.live_file.read_bytes() == new.read_bytes()
    done = snapfs("status", bench.live)
    assert done.code == 3
    assert "overflowed" in done.out
    with pytest.raises(OSError, match="Input/output error"):
        bench.snap_file.read_bytes()
    bench.umount().ok()
    assert bench.image.read_bytes() == new.read_bytes()


def test_break_write_keeps_the_snapshot(bench: Bench, disk: Disk, frozen: bytes, new: Path) -> None:
    bench.mount(*options(disk, "break-write")).ok()
    disk.fail()
    said, done_bytes = write_all(bench.live_file, new)
    assert said == f"errno {errno.EIO}"
    assert bench.snap_file.read_bytes() == frozen
    assert bench.live_file.read_bytes()[:done_bytes] == new.read_bytes()[:done_bytes]
    bench.umount().ok()
    assert bench.image.read_bytes()[:done_bytes] == new.read_bytes()[:done_bytes]


def test_wait_waits(bench: Bench, disk: Disk, frozen: bytes, new: Path) -> None:
    bench.mount(*options(disk, "wait")).ok()
    disk.fail()
    with writing(bench.live_file, new) as writer:
        wait_until(lambda: "live writes wait" in (bench.status()["error"] or ""))
        assert not writer.is_over
        assert bench.snap_file.read_bytes() == frozen
