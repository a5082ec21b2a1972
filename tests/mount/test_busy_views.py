"""The end of an instance of which a view is in use, or is there no more."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
from ground import Ground
from mounted import mount_points_below, run, snapfs, wait_until
from sectors import content
from written_views import overwrite, overwritten

MIB = 1 << 20


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
