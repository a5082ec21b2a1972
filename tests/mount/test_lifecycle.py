"""From the first answer of both views to the end of the last process."""

from __future__ import annotations

import json
import mmap
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mounted import SNAPFS, Ground, Mounted, mount_points_below, run, snapfs, wait_until
from sectors import content

MIB = 1 << 20


def overwrite(instance: Mounted, offset: int = 5000, data: bytes = b"new" * 5000) -> None:
    """A buffered write that nobody synced."""
    with instance.live_file.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def overwritten(old: bytes, offset: int = 5000, data: bytes = b"new" * 5000) -> bytes:
    return old[:offset] + data + old[offset + len(data) :]


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


# --- the end ---------------------------------------------------------------------------------------------------

ENDS: dict[str, Callable[[Mounted], object]] = {
    "SIGTERM": lambda instance: instance.processes["supervisor"].send(signal.SIGTERM),
    "SIGINT": lambda instance: instance.processes["supervisor"].send(signal.SIGINT),
    "umount of LIVE": lambda instance: run(SNAPFS, "umount", instance.live),
    "umount of SNAP": lambda instance: run(SNAPFS, "umount", instance.snap),
    "umount of IMAGE": lambda instance: run(SNAPFS, "umount", instance.image),
    "umount of the live file": lambda instance: run(SNAPFS, "umount", instance.live_file),
    "umount(8) of live": lambda instance: run("umount", instance.live),
    "umount(8) of the snapshot": lambda instance: run("umount", instance.snap),
    "fusermount3 of live": lambda instance: run("fusermount3", "-u", instance.live),
    "fusermount3 of the snapshot": lambda instance: run("fusermount3", "-u", instance.snap),
    "lazy umount of live": lambda instance: run("umount", "-l", instance.live),
    "SIGTERM to all": lambda instance: [process.send(signal.SIGTERM) for process in instance.processes.values()],
}


@pytest.mark.parametrize("end", ENDS)
def test_an_end_leaves_only_the_image(ground: Ground, end: str) -> None:
    old = content(2 * MIB)
    instance = ground.mounted(ground.image(old))
    overwrite(instance)
    ENDS[end](instance)
    instance.await_end()
    assert instance.image.read_bytes() == overwritten(old)
    assert sorted(os.listdir(ground.path)) == ["disk.img", "views"]
    assert snapfs("status", instance.live).returncode == 1


@pytest.mark.parametrize("end", ENDS)
def test_a_named_store_carries_the_snapshot_on(ground: Ground, end: str) -> None:
    old = content(2 * MIB)
    instance = ground.mounted(ground.image(old), "--store", ground.path / "kept")
    overwrite(instance)
    snapshot_id = instance.status()["snapshot"]["id"]
    ENDS[end](instance)
    instance.await_end()
    assert instance.image.read_bytes() == overwritten(old)
    done = instance.mount()
    assert "Carrying on with the same snapshot." in done.stdout
    assert instance.status()["snapshot"]["id"] == snapshot_id
    assert instance.snap_file.read_bytes() == old
    assert instance.live_file.read_bytes() == overwritten(old)
    overwrite(instance, offset=MIB)
    assert instance.snap_file.read_bytes() == old


@pytest.mark.parametrize("server", ["live", "snapshot", "compactor"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_server_ends_only_by_its_supervisor(ground: Ground, server: str, number: signal.Signals) -> None:
    old = content(MIB)
    instance = ground.mounted(ground.image(old))
    overwrite(instance)
    instance.processes[server].send(number)
    assert instance.live_file.read_bytes() == overwritten(old)
    instance.umount()
    assert instance.image.read_bytes() == overwritten(old)


def test_umount_while_the_map_is_computed(ground: Ground) -> None:
    image = ground.image(200 * MIB)
    run("mkfs.ext4", "-q", "-F", image)
    for end in ("umount(8) of the snapshot", "umount(8) of live", "umount of SNAP"):
        instance = ground.mounted(image, name=f"views, {end}")
        ENDS[end](instance)
        instance.await_end()


def test_a_long_staging_is_kept_at_the_end(ground: Ground) -> None:
    """What is still in the ring at the end is in the kept store; the store then has no ring to speak of."""
    old = os.urandom(24 * MIB)
    instance = ground.mounted(ground.image(old), "--store", ground.path / "kept")
    with instance.live_file.open("r+b") as file:
        file.write(bytes(24 * MIB))
    instance.umount()
    assert instance.image.read_bytes() == bytes(24 * MIB)
    instance.mount()
    assert instance.status()["buffer"]["staged_bytes"] == 0
    assert instance.snap_file.read_bytes() == old


def test_a_kept_store_is_sealed_again_and_again(ground: Ground) -> None:
    old = content(2 * MIB)
    instance = ground.instance(ground.image(old), "--store", ground.path / "kept")
    for turn in range(3):
        instance.mount()
        assert instance.snap_file.read_bytes() == old
        overwrite(instance, offset=turn * 300_000)
        instance.umount()
    instance.mount()
    assert instance.snap_file.read_bytes() == old


def test_writes_of_an_open_mapping_reach_the_image(ground: Ground) -> None:
    instance = ground.mounted(ground.image(MIB))
    with instance.live_file.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[1000:1003] = b"new"
    instance.umount()
    assert instance.image.read_bytes()[1000:1003] == b"new"


# --- a busy view -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["live", "snap"])
def test_umount_names_who_holds_a_view(ground: Ground, view: str) -> None:
    instance = ground.mounted(ground.image(MIB))
    file = instance.live_file if view == "live" else instance.snap_file
    with subprocess.Popen(["tail", "-f", "/dev/null", file], stdout=subprocess.DEVNULL) as holder:
        try:
            wait_until(
                lambda: any(
                    file.samefile(f"/proc/{holder.pid}/fd/{fd}")
                    for fd in range(3, 6)
                    if os.path.exists(f"/proc/{holder.pid}/fd/{fd}")
                )
            )
            done = snapfs("umount", instance.live)
        finally:
            holder.kill()
    assert done.returncode == 1
    assert str(holder.pid) in done.stderr
    assert "tail" in done.stderr
    assert str(file.parent) in done.stderr
    assert len(mount_points_below(ground.path)) == 2
    assert instance.live_file.read_bytes() == instance.snap_file.read_bytes() == bytes(MIB)
    instance.umount()


def test_umount_names_a_loop_device(ground: Ground) -> None:
    instance = ground.mounted(ground.image(MIB))
    device = ground.loop(instance.live_file)
    done = snapfs("umount", instance.snap)
    assert done.returncode == 1
    assert str(device) in done.stderr
    ground.drop_loop(device)
    instance.umount()


@pytest.mark.parametrize("gone", ["live", "snap"])
def test_a_busy_view_goes_on_alone(ground: Ground, gone: str) -> None:
    old = content(MIB)
    instance = ground.mounted(ground.image(old))
    instance.expect_log("goes on alone")
    gone_point, stays = (instance.live, instance.snap_file) if gone == "live" else (instance.snap, instance.live_file)
    overwrite(instance)
    with stays.open("rb") as file:
        run("umount", gone_point)
        wait_until(lambda: "goes on alone" in instance.log())
        assert mount_points_below(ground.path) == [stays.parent]
        assert file.read() == (old if gone == "live" else overwritten(old))
        if gone == "snap":
            overwrite(instance, offset=0)
        assert snapfs("status", stays.parent).returncode == 0
    run("umount", stays.parent)
    instance.await_end()
    assert not instance.store.exists()


def test_snapfs_umount_ends_a_view_that_is_alone(ground: Ground) -> None:
    instance = ground.mounted(ground.image(MIB))
    instance.expect_log("goes on alone")
    with instance.snap_file.open("rb"):
        run("umount", instance.live)
        wait_until(lambda: "goes on alone" in instance.log())
    instance.umount(instance.snap)


def test_sigterm_ends_a_busy_instance(ground: Ground) -> None:
    old = content(MIB)
    instance = ground.mounted(ground.image(old))
    instance.expect_log("still in use")
    live, snap = os.open(instance.live_file, os.O_RDWR), os.open(instance.snap_file, os.O_RDONLY)
    try:
        os.pwrite(live, b"new" * 5000, 5000)
        instance.processes["supervisor"].send(signal.SIGTERM)
        instance.await_end()
        for fd in (live, snap):
            with pytest.raises(OSError, match=r"not connected|abort"):
                os.pread(fd, 10, 700_000)
    finally:
        for fd in (live, snap):
            with pytest.raises(OSError, match="not connected"):
                os.close(fd)
    assert instance.image.read_bytes() == overwritten(old)
    assert not instance.store.exists()


# --- stale mounts ----------------------------------------------------------------------------------------------


def test_umount_of_a_stale_mount(ground: Ground) -> None:
    instance = ground.mounted(ground.image(MIB))
    instance.kill()
    assert len(mount_points_below(ground.path)) == 2
    for point in (instance.live, instance.snap):
        done = snapfs("umount", point)
        assert done.returncode == 0, done.stderr
    assert mount_points_below(ground.path) == []


def test_status_of_a_stale_mount_says_so(ground: Ground) -> None:
    instance = ground.mounted(ground.image(MIB))
    instance.kill()
    done = snapfs("status", instance.live)
    assert done.returncode == 1
    assert "was killed" in done.stderr
    run("umount", instance.live, instance.snap)


@pytest.mark.parametrize("command", ["umount", "status"])
@pytest.mark.parametrize("what", ["directory", "missing", "image"])
def test_what_is_not_mounted(ground: Ground, command: str, what: str) -> None:
    image = ground.image(MIB)
    path: Path = {"directory": ground.path, "missing": ground.path / "missing", "image": image}[what]
    done = snapfs(command, path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"snapfs: {path} is not mounted with snapfs")
    assert done.stderr.count("\n") == 1


def test_an_answer_after_a_forced_umount_is_no_error(ground: Ground) -> None:
    """The kernel takes no answer any more to what was asked before; nothing was lost by that."""
    old = random.Random(1).randbytes(8 * MIB)
    instance = ground.mounted(ground.image(old), "--buffer-limit=1M", "--on-overflow=wait")
    instance.expect_log("of its limit|live writes wait|the snapshot is lost")
    words = ["dd", "if=/dev/zero", f"of={instance.live_file}", "bs=1M", "conv=notrunc", "oflag=direct"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as writer:
        wait_until(lambda: "live writes wait" in instance.log())
        run("umount", "-f", "-l", instance.live)
        assert writer.wait(20) != 0
    instance.umount(instance.snap)
