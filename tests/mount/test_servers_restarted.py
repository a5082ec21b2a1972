"""A snapshot server or a compactor that dies owns nothing: it is started again, and the live view goes on."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ground import Ground
from mounted import Mounted, Process, find_processes, mount_points_below, snapfs, wait_until
from sectors import content
from test_processes_killed import MIB, image_versions, load

from snapfs.servers.process import STOP_SIGNAL
from snapfs.servers.restarts import BURST, REFILL_S, Restarts

LENGTH = 8 * MIB + 700
LOG = "was killed by signal 9; it is started|still in use|the map of used blocks failed"


def present(instance: Mounted, name: str) -> Process | None:
    """The process that has the part now, if it has its name already."""
    try:
        found = find_processes(instance.processes["supervisor"].pid)
    except OSError:  # one of them ended meanwhile
        return None
    process = found.pop(name, None)
    for other in found.values():
        other.close()
    return process if process is None or process.is_running else None


def replace(instance: Mounted, name: str) -> None:
    """Kill the server, and adopt the one that takes its place."""
    instance.kill(name)
    instance.processes.pop(name).close()
    found: list[Any] = []
    wait_until(lambda: found.append(present(instance, name)) or found[-1])
    instance.processes[name] = found[-1]
    if name == "snapshot":
        wait_until(lambda: instance.status()["error"] is None)


def kill_until_it_is_missing(instance: Mounted, name: str) -> None:
    """As often as it is started again at once."""
    for _ in range(BURST):
        replace(instance, name)
    instance.kill(name)
    instance.processes.pop(name).close()
    wait_until(lambda: instance.status()["error"])


@pytest.mark.parametrize("victim", ["snapshot", "compactor"])
def test_killed_under_load_and_started_again(ground: Ground, victim: str) -> None:
    old = content(LENGTH)
    instance = ground.mounted(ground.image(old))
    instance.expect_log(LOG)
    before = image_versions(instance.image)
    with load(instance.live_file, "direct", seed=1, version=0) as running:
        for count in (20, 80, 200):
            running.read_until(count)
            replace(instance, victim)
        running.read_until(300)
    assert instance.snap_file.read_bytes() == old
    wait_until(lambda: instance.status()["buffer"]["staged_bytes"] == 0)
    assert instance.snap_file.read_bytes() == old
    instance.umount()
    running.check(before, image_versions(instance.image))
    assert not instance.store.exists()


def test_an_open_file_of_a_dead_snapshot_server_fails_and_a_new_one_reads(ground: Ground) -> None:
    old = content(MIB)
    instance = ground.mounted(ground.image(old))
    instance.expect_log(LOG)
    fd = os.open(instance.snap_file, os.O_RDONLY)
    try:
        replace(instance, "snapshot")
        with pytest.raises(OSError, match=r"not connected|abort"):
            os.pread(fd, 10, 700_000)
    finally:
        with pytest.raises(OSError, match="not connected"):
            os.close(fd)
    assert instance.snap_file.read_bytes() == old


def test_the_present_cut_is_shown_again_where_the_view_is_now(ground: Ground) -> None:
    old = content(MIB)
    instance = ground.mounted(ground.image(old), name="before")
    instance.expect_log(LOG)
    with instance.live_file.open("r+b") as file:
        file.write(b"new")
    assert snapfs("snapshot", instance.live).returncode == 0
    with instance.live_file.open("r+b") as file:
        file.write(b"later")
    moved = (ground.path / "before").rename(ground.path / "after")
    instance.live, instance.snap = moved / "live", moved / "snap"
    replace(instance, "snapshot")
    assert instance.snap_file.read_bytes() == b"new" + old[3:]
    assert set(mount_points_below(ground.path)) == {instance.live, instance.snap}


def test_the_map_is_computed_by_the_next_one(ground: Ground) -> None:
    image = ground.image(64 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True, timeout=20)
    instance = ground.mounted(image)
    instance.expect_log(LOG)
    # A mapper that reads the view ends only when its server answers, and a cut waits for it as long as it may.
    wait_until(lambda: instance.status()["snapshot"]["map"] == "ready")
    instance.processes["snapshot"].send(signal.SIGSTOP)
    assert snapfs("snapshot", instance.live, timeout_s=30).returncode == 1
    replace(instance, "snapshot")
    wait_until(lambda: instance.status()["snapshot"]["map"] == "ready")


def test_one_that_dies_again_and_again_is_missed_and_the_live_view_goes_on(ground: Ground) -> None:
    old = content(MIB)
    instance = ground.mounted(ground.image(old))
    instance.expect_log(LOG)
    kill_until_it_is_missing(instance, "snapshot")
    assert "the snapshot cannot be read" in instance.status()["error"]
    assert mount_points_below(ground.path) == [instance.live]
    with instance.live_file.open("r+b") as file:
        file.write(b"new")
    instance.umount()
    assert instance.image.read_bytes() == b"new" + old[3:]
    assert not instance.store.exists()


@pytest.mark.parametrize(("policy", "state"), [("break-snapshot", "overflowed"), ("break-write", "active")])
def test_the_policy_decides_when_the_ring_is_full_and_nobody_empties_it(
    ground: Ground, policy: str, state: str
) -> None:
    instance = ground.mounted(ground.image(content(100 * MIB)), "--on-overflow", policy)
    instance.expect_log(LOG + "|the snapshot is lost|write of the image failed")
    kill_until_it_is_missing(instance, "compactor")
    words = ["dd", "if=/dev/zero", f"of={instance.live_file}", "bs=1M", "conv=notrunc", "oflag=direct", "count=90"]
    done = subprocess.run(words, stderr=subprocess.DEVNULL, timeout=30, check=False)
    assert (done.returncode == 0) is (policy == "break-snapshot")
    assert instance.status()["snapshot"]["state"] == state
    instance.umount()


def test_starts_are_few_at_once_and_come_back_with_time() -> None:
    restarts = Restarts()
    assert [restarts.take(1000.0) for _ in range(BURST)] == [0.0] * BURST
    assert restarts.take(1000.0) == REFILL_S
    assert restarts.take(1000.0 + REFILL_S / 2) == REFILL_S / 2
    assert restarts.take(1000.0 + REFILL_S) == 0.0
    assert restarts.take(1000.0 + 100 * REFILL_S) == 0.0


def test_a_compactor_is_stopped_by_a_signal_that_another_of_its_threads_gets(ground: Ground) -> None:
    """As when the main one is stopped, or looked at by a debugger, in that moment."""
    instance = ground.mounted(ground.image(content(LENGTH)), "--protect", "all")
    instance.expect_log(".")
    instance.live_file.write_bytes(content(LENGTH)[::-1])
    compactor = instance.processes["compactor"]
    tasks = Path(f"/proc/{compactor.pid}/task")

    def others() -> list[int]:
        return [int(task.name) for task in tasks.iterdir() if int(task.name) != compactor.pid]

    def waits_for_ever() -> bool:
        # poll(…, …, -1), by whatever number this machine has for it
        words = (tasks / str(compactor.pid) / "syscall").read_text().split()
        return len(words) > 3 and int(words[3], 16) & 0xFFFFFFFF == 0xFFFFFFFF

    wait_until(lambda: others() and waits_for_ever(), what="a compactor that is idle")
    ctypes.CDLL(None).tgkill(compactor.pid, others()[0], STOP_SIGNAL)
    compactor.await_end()
