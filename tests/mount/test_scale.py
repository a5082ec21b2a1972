"""An image of 16 TiB: ready at once, a small store, bounded memory."""

from __future__ import annotations

import mmap
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from ground import Ground
from mounted import Mounted, run, wait_until

# What it measures others would spoil.
pytestmark = pytest.mark.alone

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
# A block less than 16 TiB: ext4 has no larger file.
HUGE = 16 * TIB - 4096
MAX_MEMORY_MIB = 250
SEQUENTIAL_BYTES, RANDOM_BYTES = 15 * GIB // 8, GIB // 8


def disk_bytes(directory: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in directory.rglob("*"))


class Memory:
    """The most that all processes of an instance, the mapper too, had at once: Pss and Rss in MiB."""

    def __init__(self, instance: Mounted) -> None:
        self._instance = instance
        self.pss_mib = self.rss_mib = 0.0
        self.parts: dict[str, int] = {}

    def look(self) -> None:
        pids = {name: process.pid for name, process in self._instance.processes.items()}
        children = Path(f"/proc/{pids['live']}/task/{pids['live']}/children").read_text().split()
        pids |= {f"child {pid}": int(pid) for pid in children}
        pss, rss = {}, 0
        for name, pid in pids.items():
            with suppress(OSError):
                rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
                sizes = {row.split(":")[0]: int(row.split()[1]) for row in rows}
                pss[name] = sizes["Pss"] >> 10
                rss += sizes["Rss"]
        if sum(pss.values()) > self.pss_mib:
            self.pss_mib, self.parts = sum(pss.values()), pss
        self.rss_mib = max(self.rss_mib, rss / 1024)

    def watch(self, stopped: threading.Event) -> None:
        while not stopped.wait(0.1):
            self.look()


@pytest.mark.parametrize("protect", ["all", "used"])
def test_16_tib_is_ready_at_once_in_a_small_store(ground: Ground, protect: str) -> None:
    instance = ground.instance(ground.image(HUGE), "--protect", protect)
    began = time.monotonic()
    instance.mount()
    took_s = time.monotonic() - began
    wait_until(lambda: instance.status()["snapshot"].get("map") != "computing", 60)
    staging_bytes = (instance.store / "staging").stat().st_blocks * 512
    assert disk_bytes(instance.store) < 2 * MIB, staging_bytes
    with instance.snap_file.open("rb") as file:
        file.seek(HUGE - 1000)
        assert file.read() == bytes(1000)
    assert took_s < 2


def test_memory_stays_bounded(ground: Ground) -> None:
    """2 GiB of first-touch writes, one after the other and then all over the image."""
    instance = ground.mounted(ground.image(HUGE))
    memory, stopped = Memory(instance), threading.Event()
    watcher = threading.Thread(target=memory.watch, args=(stopped,))
    watcher.start()
    fd = os.open(instance.live_file, os.O_RDWR | os.O_DIRECT)
    try:
        wait_until(lambda: instance.status()["snapshot"].get("map") != "computing", 60)
        write_all_over(fd)
    finally:
        stopped.set()
        watcher.join()
        os.close(fd)
    print(f"\nPss {memory.pss_mib} MiB {memory.parts}, Rss {memory.rss_mib:.0f} MiB")
    status = instance.status()["snapshot"]
    assert status["state"] == "active"
    assert status["preserved_blocks"] >= (SEQUENTIAL_BYTES + RANDOM_BYTES) // 4096 * 0.99
    assert memory.pss_mib < MAX_MEMORY_MIB, memory.parts
    run("cmp", "-n", str(64 * MIB), instance.snap_file, "/dev/zero")
    # A clean end would wait until gigabytes that are about to be removed are on the disk.
    instance.kill()
    run("umount", instance.live, instance.snap)


def write_all_over(fd: int) -> None:
    buffer = mmap.mmap(-1, MIB)
    buffer[:] = os.urandom(MIB)
    for offset in range(0, SEQUENTIAL_BYTES, MIB):
        os.pwrite(fd, buffer, offset)
    small = memoryview(buffer)[:4096]

    def scatter(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(RANDOM_BYTES // 4096 // 4):
            os.pwrite(fd, small, rng.randrange(SEQUENTIAL_BYTES // 4096, HUGE // 4096) * 4096)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(scatter, range(4)))
