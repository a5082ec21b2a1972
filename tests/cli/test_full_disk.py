"""The store's own filesystem filled to the last block: an overflow like that of a limit, and never a SIGBUS."""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Bench, small_filesystem, snapfs, wait_until
from writers import MIB, random_file, write_all, writing

DISK_BYTES = 96 * MIB  # room for the ring of 64 MiB and some segments
RING_BYTES = 64 * MIB
MOMENTS = ["before", "middle", "ring"]


@pytest.fixture
def disk(bench: Bench) -> Iterator[Path]:
    with small_filesystem(bench.path, DISK_BYTES) as point:
        try:
            yield point
        finally:
            bench.end_processes()


@pytest.fixture
def frozen(bench: Bench) -> bytes:
    bench.image.write_bytes(os.urandom(RING_BYTES + 8 * MIB))
    return bench.image.read_bytes()


@pytest.fixture
def new(bench: Bench, frozen: bytes, moment: str) -> Path:
    """Always with blocks in it that nobody has written to before."""
    return random_file(bench.path / "new.bin", len(frozen) if moment == "ring" else 8 * MIB)


def fill(directory: Path) -> None:
    """To the last block."""
    fd = os.open(directory / "filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for size_bytes in (1 << 20, 4096):
            try:
                while True:
                    os.write(fd, bytes(size_bytes))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        os.fsync(fd)
    finally:
        os.close(fd)


def child(bench: Bench, name: str) -> int:
    """The server of the instance with this process name."""
    pid = bench.status()["pid"]
    for server in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if Path(f"/proc/{server}/comm").read_text().strip() == name:
            return int(server)
    raise AssertionError(name)


def fill_at(bench: Bench, disk: Path, moment: str) -> None:
    """Fill the disk before anything is preserved, after some of it is in segments, or while the ring is full."""
    if moment == "before":
        fill(disk)
        return
    some = random_file(bench.path / "some.bin", 2 * MIB)
    assert write_all(bench.live_file, some)[0] == "synced"
    wait_until(lambda: bench.status()["buffer"]["staged_bytes"] == 0)
    if moment == "middle":
        fill(disk)
        return
    compactor = child(bench, "snapfs-compacto")
    os.kill(compactor, signal.SIGSTOP)
    most = random_file(bench.path / "most.bin", RING_BYTES)
    try:
        assert write_all(bench.live_file, most)[0] == "synced"
        fill(disk)
    finally:
        os.kill(compactor, signal.SIGCONT)


def options(disk: Path, policy: str) -> list[str]:
    return ["--store", str(disk / "store"), f"--on-overflow={policy}", "--cache=writethrough"]


def no_server_died(disk: Path) -> bool:
    """A map that found no room has failed, too, and is none."""
    log = (disk / "store" / "log").read_text()
    return not re.search(r"was killed by signal|ended with code|the [a-z]+ server failed", log)


@pytest.mark.parametrize("moment", MOMENTS)
def test_break_snapshot(bench: Bench, disk: Path, new: Path, moment: str) -> None:
    with bench.mounted(*options(disk, "break-snapshot")):
        fill_at(bench, disk, moment)
        assert write_all(bench.live_file, new)[0] == "synced"
        assert bench.live_file.read_bytes().startswith(new.read_bytes())
        done = snapfs("status", bench.live)
        assert done.code == 3
        assert "overflowed" in done.out
        with pytest.raises(OSError, match="Input/output error"):
            bench.snap_file.read_bytes()
        assert no_server_died(disk)
    assert bench.image.read_bytes().startswith(new.read_bytes())


@pytest.mark.parametrize("moment", MOMENTS)
def test_break_write(bench: Bench, disk: Path, frozen: bytes, new: Path, moment: str) -> None:
    with bench.mounted(*options(disk, "break-write")):
        fill_at(bench, disk, moment)
        before = bench.live_file.read_bytes()
        said, done_bytes = write_all(bench.live_file, new)
        assert said == f"errno {errno.ENOSPC}"
        assert bench.snap_file.read_bytes() == frozen
        assert snapfs("status", bench.live).code == 0
        live = bench.live_file.read_bytes()
        assert live[:done_bytes] == new.read_bytes()[:done_bytes]
        assert live[done_bytes + MIB :] == before[done_bytes + MIB :]
        (disk / "filler").unlink()
        assert write_all(bench.live_file, random_file(bench.path / "few.bin", 4 * MIB))[0] == "synced"
        assert bench.snap_file.read_bytes() == frozen
        assert no_server_died(disk)


def is_waiting(bench: Bench) -> bool:
    """Status tells it, for the log may have no room to."""
    return "live writes wait" in (bench.status()["error"] or "")


@pytest.mark.parametrize("moment", MOMENTS)
def test_wait(bench: Bench, disk: Path, frozen: bytes, moment: str) -> None:
    few = random_file(bench.path / "few.bin", RING_BYTES + 8 * MIB if moment == "ring" else 6 * MIB)
    with bench.mounted(*options(disk, "wait")):
        if moment == "ring":
            compactor = child(bench, "snapfs-compacto")
            os.kill(compactor, signal.SIGSTOP)
            with writing(bench.live_file, few) as writer:
                wait_until(lambda: bench.status()["buffer"]["staged_bytes"] > RING_BYTES - MIB)
                fill(disk)
                os.kill(compactor, signal.SIGCONT)
                wait_until(lambda: is_waiting(bench))
                (disk / "filler").unlink()
                assert writer.finish()[0] == "synced"
        else:
            fill_at(bench, disk, moment)
            with writing(bench.live_file, few) as writer:
                wait_until(lambda: is_waiting(bench))
                assert not writer.is_over
                assert snapfs("status", bench.live).code == 0
                (disk / "filler").unlink()
                assert writer.finish()[0] == "synced"
            assert bench.live_file.read_bytes()[: 6 * MIB] == few.read_bytes()
        assert bench.snap_file.read_bytes() == frozen
        assert no_server_died(disk)
