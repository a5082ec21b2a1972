"""kill -9 of any process at any time: acknowledged live data are in the image, and the snapshot is carried on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sectors
from ground import Ground
from mounted import SERVERS, Mounted, mount_points_below, run, snapfs, wait_until
from sectors import SECTOR, ZONE, Versions, content, versions_in

MIB = 1 << 20
LENGTH = 8 * MIB + 700
WHOLE = LENGTH // ZONE * ZONE
EXPECTED_LOG = (
    "server was killed|server ended|compactor was killed|still in use|goes on alone|could not be (written|emptied)|"
    "the map of used blocks failed"
)


class Load:
    """Threads of another process that rewrite the live view; what they say is read as it comes."""

    def __init__(self, path: Path, way: str, seed: int, version: int) -> None:
        words = [sys.executable, sectors.__file__, path, way, str(seed), "3", str(version)]
        self._process = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.facts: list[dict[str, Any]] = []

    def read_until(self, safe_count: int) -> None:
        """Until so many writes have been acknowledged in all; or until the end."""
        assert self._process.stdout is not None
        count = sum(fact["safe"] for fact in self.facts)
        while count < safe_count and (line := self._process.stdout.readline()):
            if line.endswith(b"\n"):
                self.facts.append(json.loads(line))
                count += self.facts[-1]["safe"]

    def end(self) -> None:
        """Kill it, and read what it has said."""
        self._process.kill()
        self.read_until(1 << 60)
        self._process.wait(20)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def check(self, before: Versions, after: Versions) -> None:
        """Each sector is what was acknowledged last, or what was tried after that; all others are as before."""
        allowed = [{int(version)} for version in before]
        for fact in self.facts:
            for number in range(fact["first"], fact["first"] + fact["count"]):
                if fact["safe"]:
                    allowed[number] = {version for version in allowed[number] if version >= fact["version"]}
                else:
                    allowed[number].add(fact["version"])
        wrong = [
            (number, int(after[number]), sorted(allowed[number]))
            for number in range(len(after))
            if int(after[number]) not in allowed[number]
        ]
        assert not wrong, f"{len(wrong)} sectors (number, version, allowed): {wrong[:5]}"


@contextmanager
def load(path: Path, way: str, seed: int, version: int) -> Iterator[Load]:
    running = Load(path, way, seed, version)
    try:
        yield running
    finally:
        running.end()


def image_versions(image: Path) -> Versions:
    return versions_in(image.read_bytes()[:WHOLE], 0)


def await_processes(instance: Mounted) -> None:
    for process in instance.processes.values():
        process.await_end()


def check_carried_on(instance: Mounted, old: bytes, snapshot_id: str) -> None:
    """Mounted again with the same arguments: the same snapshot, and it is said."""
    stale = bool(mount_points_below(instance.live.parent))
    done = instance.mount()
    assert "Carrying on with the same snapshot." in done.stdout
    assert ("stale mount" in done.stderr) == stale
    status = instance.status()
    assert status["snapshot"]["id"] == snapshot_id
    assert status["snapshot"]["state"] == "active"
    assert instance.snap_file.read_bytes() == old


WAYS = [("direct", "writeback"), ("synced", "writeback"), ("returned", "writethrough")]


@pytest.mark.parametrize(("way", "cache"), WAYS)
@pytest.mark.parametrize("victim", ["all", "supervisor", "live"])
def test_killed_again_and_again_under_load(ground: Ground, victim: str, way: str, cache: str) -> None:
    old = content(LENGTH)
    instance = ground.mounted(ground.image(old), "--cache", cache)
    instance.expect_log(EXPECTED_LOG)
    snapshot_id = instance.status()["snapshot"]["id"]
    rng = random.Random(f"{victim} {way}")
    for turn in range(3):
        before = image_versions(instance.image)
        with load(instance.live_file, way, seed=turn, version=turn * 1_000_000) as running:
            running.read_until(rng.randrange(1, 250))
            instance.kill(*([] if victim == "all" else [victim]))
            await_processes(instance)
        running.check(before, image_versions(instance.image))
        check_carried_on(instance, old, snapshot_id)
    instance.umount()
    running.check(before, image_versions(instance.image))
    assert instance.image.read_bytes()[WHOLE:] == old[WHOLE:]
    assert not instance.store.exists()


@contextmanager
def writing_without_compactor(instance: Mounted) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose direct writes fill the ring and then wait: the compactor is stopped."""
    instance.processes["compactor"].send(signal.SIGSTOP)
    words = ["dd", "if=/dev/zero", f"of={instance.live_file}", "bs=1M", "conv=notrunc", "oflag=direct", "count=100"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as writer:
        wait_until(lambda: instance.status()["buffer"]["staged_bytes"] > 60 * MIB)
        yield writer


def test_a_supervisor_killed_while_writes_wait_keeps_nobody(ground: Ground) -> None:
    """The last writes wait for a compactor that is stopped, and that nobody starts again."""
    old = content(100 * MIB)
    instance = ground.mounted(ground.image(old))
    instance.expect_log("still in use|write of the image failed")
    snapshot_id = instance.status()["snapshot"]["id"]
    with writing_without_compactor(instance) as writer:
        instance.processes["supervisor"].send(signal.SIGKILL)
        instance.processes["live"].await_end()
        assert writer.wait(20) != 0
        instance.processes["compactor"].send(signal.SIGCONT)
        await_processes(instance)
    check_carried_on(instance, old, snapshot_id)


def test_mount_waits_for_a_killed_instance_to_let_go(ground: Ground) -> None:
    old = content(LENGTH)
    instance = ground.mounted(ground.image(old))
    snapshot_id = instance.status()["snapshot"]["id"]
    for name in SERVERS:
        instance.processes[name].send(9)
    check_carried_on(instance, old, snapshot_id)


def test_a_file_held_open_on_a_stale_mount_hinders_nobody(ground: Ground) -> None:
    old = content(LENGTH)
    instance = ground.mounted(ground.image(old))
    snapshot_id = instance.status()["snapshot"]["id"]
    held = [os.open(path, os.O_RDONLY) for path in (instance.live_file, instance.snap_file)]
    try:
        instance.kill()
        check_carried_on(instance, old, snapshot_id)
    finally:
        for fd in held:
            with pytest.raises(OSError, match="not connected"):
                os.close(fd)


def test_staged_blocks_survive(ground: Ground) -> None:
    """Nothing was compacted yet: what the ring holds is as good as what segments hold."""
    old = os.urandom(24 * MIB)
    instance = ground.mounted(ground.image(old))
    snapshot_id = instance.status()["snapshot"]["id"]
    with instance.live_file.open("r+b") as file:
        file.write(bytes(24 * MIB))
        os.fsync(file.fileno())
    instance.kill()
    assert instance.image.read_bytes() == bytes(24 * MIB)
    check_carried_on(instance, old, snapshot_id)


# --- the image changed meanwhile -------------------------------------------------------------------------------


def change(image: Path) -> None:
    with image.open("r+b") as file:
        file.seek(70_000)
        file.write(b"changed behind its back")


def check_refused(instance: Mounted) -> None:
    done = instance.try_mount()
    assert done.returncode == 1
    assert "changed" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not instance.processes or not instance.is_running
    assert mount_points_below(instance.live.parent) == []


def test_image_changed_after_a_kill_is_refused(ground: Ground) -> None:
    instance = ground.mounted(ground.image(content(LENGTH)))
    with load(instance.live_file, "direct", seed=1, version=0) as running:
        running.read_until(50)
    time.sleep(0.5)  # a write within the clock's slack after the last of ours cannot be told from it
    instance.kill()
    run("umount", instance.live, instance.snap)
    change(instance.image)
    check_refused(instance)


def test_image_changed_after_a_kill_under_load_is_refused(ground: Ground) -> None:
    instance = ground.mounted(ground.image(content(LENGTH)))
    with load(instance.live_file, "direct", seed=1, version=0) as running:
        running.read_until(50)
        instance.kill()
    run("umount", instance.live, instance.snap)
    time.sleep(0.7)
    change(instance.image)
    check_refused(instance)


def test_image_changed_after_a_clean_end_is_refused(ground: Ground) -> None:
    instance = ground.mounted(ground.image(content(LENGTH)), "--store", ground.path / "kept")
    instance.umount()
    change(instance.image)
    check_refused(instance)


def test_image_that_grew_is_refused(ground: Ground) -> None:
    instance = ground.mounted(ground.image(content(LENGTH)), "--store", ground.path / "kept")
    instance.umount()
    os.truncate(instance.image, LENGTH + SECTOR)
    check_refused(instance)


def test_another_image_in_its_place_is_refused(ground: Ground) -> None:
    instance = ground.mounted(ground.image(content(LENGTH)), "--store", ground.path / "kept")
    instance.umount()
    instance.image.rename(ground.path / "old.img")
    ground.image(content(LENGTH))
    done = instance.try_mount()
    assert done.returncode == 1
    assert "another image" in done.stderr


def test_status_and_umount_after_a_kill(ground: Ground) -> None:
    instance = ground.mounted(ground.image(MIB))
    instance.expect_log(EXPECTED_LOG)
    instance.kill("live")
    await_processes(instance)
    wait_until(lambda: mount_points_below(ground.path) == [])
    assert snapfs("status", instance.live).returncode == 1
    assert instance.store.exists()
