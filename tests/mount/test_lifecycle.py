"""The first answer of both views, and what status says of an instance."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time

import pytest
from ground import Ground
from mounted import SNAPFS, run, snapfs, wait_until
from sectors import content
from written_views import overwrite, overwritten

MIB = 1 << 20


# --- the beginning ---------------------------------------------------------------------------------------------


def test_ready_means_both_views_answer(ground: Ground) -> None:
    old = content(MIB)
    instance = ground.instance(ground.image(old))
    done = snapfs("mount", instance.image, instance.live, instance.snap)
    both = instance.live_file.read_bytes(), instance.snap_file.read_bytes()
    instance._adopt()
    assert done.returncode == 0
    assert both == (old, old)
    lines = done.stdout.splitlines()
    assert str(instance.live_file) in lines[0]
    assert str(instance.snap_file) in lines[1]
    assert str(instance.store) in lines[2]
    assert done.stderr == ""


def test_output_into_a_pipe_ends(ground: Ground) -> None:
    """Nobody who reads what mount says waits for the daemon."""
    instance = ground.instance(ground.image(MIB))
    words = [SNAPFS, "mount", instance.image, instance.live, instance.snap]
    done = subprocess.run(
        ["sh", "-c", '"$@" 2>&1 | cat', "sh", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, timeout=30
    )
    instance._adopt()
    assert b"snapshot" in done.stdout


def test_no_process_keeps_a_directory_or_a_stream(ground: Ground) -> None:
    instance = ground.mounted(ground.image(MIB))
    for process in instance.processes.values():
        assert os.readlink(f"/proc/{process.pid}/cwd") == "/"
        assert [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in (0, 1, 2)] == ["/dev/null"] * 3


def test_foreground_stays_in_front(ground: Ground) -> None:
    instance = ground.instance(ground.image(MIB))
    front = instance.mount_in_front(ground.path / "stderr")
    assert front.pid == instance.processes["supervisor"].pid
    front.send_signal(signal.SIGINT)
    assert front.wait(20) == 0
    instance.await_end()
    assert not instance.store.exists()


@pytest.mark.alone
def test_idle_instance_uses_no_processor_time(ground: Ground) -> None:
    instance = ground.mounted(ground.image(16 * MIB))
    overwrite(instance)
    run("sync", "-f", instance.live_file)
    wait_until(lambda: not (instance.store / "staging").stat().st_blocks, what="the rest after the last write")
    time.sleep(0.5)  # what is done for it is over

    def ticks() -> int:
        return sum(process.cpu_ticks() for process in instance.processes.values())

    before = ticks()
    time.sleep(2)
    assert ticks() - before <= 1


# --- status ----------------------------------------------------------------------------------------------------
STATUS_KEYS = {
    "": {
        "version",
        "image",
        "image_bytes",
        "block_bytes",
        "live",
        "snap",
        "store",
        "pid",
        "snapshot",
        "buffer",
        "error",
    },
    "snapshot": {
        "id",
        "state",
        "taken_at",
        "freeze_ms",
        "protect",
        "used_blocks",
        "owed_blocks",
        "preserved_blocks",
        "released_blocks",
        "changed_blocks",
    },
    "buffer": {"raw_bytes", "stored_bytes", "limit_bytes", "on_overflow"},
}


def test_status_has_its_keys(ground: Ground) -> None:
    instance = ground.mounted(ground.image(16 * MIB), "--buffer-limit", "1G")
    with instance.live_file.open("r+b") as file:
        file.write(b"x" * MIB)
        os.fsync(file.fileno())
    done = snapfs("status", instance.snap, "--json")
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout)
    for name, keys in STATUS_KEYS.items():
        assert keys <= set(status[name] if name else status)
    assert status["image"] == str(instance.image)
    assert (status["live"], status["snap"]) == (str(instance.live), str(instance.snap))
    assert status["store"] == str(instance.store)
    assert status["image_bytes"] == 16 * MIB
    assert status["pid"] == instance.processes["supervisor"].pid
    snapshot = status["snapshot"]
    assert snapshot["state"] == "active"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", snapshot["taken_at"])
    assert snapshot["preserved_blocks"] == snapshot["changed_blocks"] == MIB // 4096
    assert snapshot["owed_blocks"] == snapshot["used_blocks"] - snapshot["preserved_blocks"]
    assert status["buffer"]["raw_bytes"] == MIB
    assert status["buffer"]["limit_bytes"] == 1 << 30
    assert status["error"] is None


def test_status_finds_the_instance_by_any_path(ground: Ground) -> None:
    instance = ground.mounted(ground.image(MIB), "--store", ground.path / "elsewhere")
    for path in (instance.live, instance.snap, instance.image, instance.live_file, instance.snap_file):
        done = snapfs("status", path, "--json")
        assert json.loads(done.stdout)["pid"] == instance.processes["supervisor"].pid
    assert str(instance.image) in snapfs("status").stdout


def test_two_instances_at_once(ground: Ground) -> None:
    old = [content(2 * MIB, version=number) for number in range(2)]
    both = [
        ground.mounted(ground.image(old[number], name=f"disk{number}.img"), name=f"views{number}")
        for number in range(2)
    ]
    overwrite(both[0])
    listed = json.loads(snapfs("status", "--json").stdout)
    assert {instance.status()["pid"] for instance in both} <= {status["pid"] for status in listed}
    both[0].umount()
    assert both[0].image.read_bytes() == overwritten(old[0])
    overwrite(both[1], data=b"other" * 100)
    assert both[1].snap_file.read_bytes() == old[1]
    both[1].umount()
    assert both[1].image.read_bytes() == overwritten(old[1], data=b"other" * 100)
