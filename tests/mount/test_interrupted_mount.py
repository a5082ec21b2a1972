"""A mount that is interrupted at any moment leaves no store, no mount, no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from ground import Ground
from mounted import SNAPFS, Mounted, mount_points_below, wait_until
from sectors import content

from cow import Files, StoreError, open_reader

MIB = 1 << 20


def processes_about(path: Path) -> list[str]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                command = Path("/proc", name, "cmdline").read_bytes()
            except OSError:
                continue
            if f"{path}/".encode() in command:
                found.append(name)
    return found


def abandoned(ground: Ground, instance: Mounted) -> None:
    """Mount, and have the command killed when the views answer, before it is told so."""
    words = [sys.executable, Path(__file__).with_name("abandoned_mount.py"), "mount"]
    done = subprocess.run([*words, instance.image, instance.live, instance.snap, *instance.options], check=False)
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: not processes_about(ground.path))
    assert mount_points_below(ground.path) == []


def interrupted(instance: Mounted, number: signal.Signals, stage: str, *options: str | Path) -> int:
    """Start a mount, and send it the signal when it has come so far."""
    words = [SNAPFS, "mount", instance.image, instance.live, instance.snap, *instance.options, *options]
    stages = {
        "store": instance.store.exists,
        "live": lambda: instance.live in mount_points_below(instance.live.parent),
        "at once": lambda: True,
    }
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 10
        while not stages[stage]() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(number)
        try:
            return process.wait(20)
        finally:
            process.kill()  # one that hangs fails the test, and is not waited for


def goes_on(instance: Mounted) -> bool:
    """Whether its command had been told that the views answer when it was killed: then it is a mount as any other."""
    try:
        with closing(open_reader(instance.store, Files())) as store:
            return not store.control.is_unseen
    except (OSError, StoreError):
        return False


@pytest.mark.parametrize("stage", ["store", "live"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_mount_leaves_nothing(ground: Ground, number: signal.Signals, stage: str) -> None:
    instance = ground.instance(ground.image(content(MIB)))
    code = interrupted(instance, number, stage)
    if code == 0:
        instance._adopt()  # it was quicker
        return
    assert code == 130
    assert mount_points_below(ground.path) == []
    assert sorted(os.listdir(ground.path)) == ["disk.img", "views"]
    assert processes_about(ground.path) == []


def mounted_late(instance: Mounted, moment: str) -> int:
    words = [sys.executable, Path(__file__).with_name("late_signal.py"), moment, "mount"]
    done = subprocess.run([*words, instance.image, instance.live, instance.snap, *instance.options], check=False)
    return done.returncode


@pytest.mark.parametrize("moment", ["before", "twice"])
def test_told_to_end_before_the_views_count_as_there_it_leaves_nothing(ground: Ground, moment: str) -> None:
    instance = ground.instance(ground.image(content(MIB)))
    assert mounted_late(instance, moment) == 130
    assert mount_points_below(ground.path) == []
    assert sorted(os.listdir(ground.path)) == ["disk.img", "views"]
    assert processes_about(ground.path) == []


@pytest.mark.parametrize("moment", ["before", "killed later"])
def test_the_snapshot_of_one_that_ended_then_is_not_carried_on(ground: Ground, moment: str) -> None:
    instance = ground.instance(ground.image(content(MIB)), "--store", ground.path / "store")
    assert mounted_late(instance, moment) != 0
    done = instance.mount()
    assert "Carrying on" not in done.stdout


@pytest.mark.parametrize("moment", ["after", "end"])
def test_told_to_end_after_that_it_is_a_mount_and_says_so(ground: Ground, moment: str) -> None:
    instance = ground.instance(ground.image(content(MIB)))
    assert mounted_late(instance, moment) == 0
    instance._adopt()


@pytest.mark.parametrize("moment", ["killed", "killed later"])
def test_one_whose_daemon_is_killed_before_it_has_reported_leaves_nothing(ground: Ground, moment: str) -> None:
    instance = ground.instance(ground.image(content(MIB)))
    assert mounted_late(instance, moment) == 1
    assert mount_points_below(ground.path) == []
    assert sorted(os.listdir(ground.path)) == ["disk.img", "views"]
    assert processes_about(ground.path) == []


@pytest.mark.parametrize("stage", ["store", "live"])
def test_a_killed_mount_is_undone_or_taken_up_by_nobody(ground: Ground, stage: str) -> None:
    """Its snapshot was never seen, so it is none: what was changed since then hinders nobody."""
    old = content(MIB)
    instance = ground.instance(ground.image(old))
    instance.expect_log("before the views answered|snapfs failed")
    if interrupted(instance, signal.SIGKILL, stage) == 0:
        instance._adopt()
        return
    wait_until(lambda: not processes_about(ground.path) or goes_on(instance))
    if processes_about(ground.path):
        instance._adopt()
        return
    assert mount_points_below(ground.path) == []
    with instance.image.open("r+b") as file:
        file.write(b"changed meanwhile")
    done = instance.mount()
    assert "Carrying on" not in done.stdout
    assert instance.snap_file.read_bytes() == instance.image.read_bytes()


def test_a_mount_whose_command_is_killed_before_it_is_told_leaves_nothing(ground: Ground) -> None:
    instance = ground.instance(ground.image(content(MIB)))
    instance.expect_log("before the views answered")
    abandoned(ground, instance)
    assert sorted(os.listdir(ground.path)) == ["disk.img", "views"]


def test_a_snapshot_that_was_carried_on_at_that_moment_still_is(ground: Ground) -> None:
    old = content(MIB)
    instance = ground.mounted(ground.image(old), "--store", ground.path / "store")
    instance.expect_log("server was killed|server ended|still in use|before the views answered")
    with instance.live_file.open("r+b") as file:
        file.write(b"new")
    snapshot_id = instance.status()["snapshot"]["id"]
    instance.kill()
    abandoned(ground, instance)
    assert "Carrying on" in instance.mount().stdout
    assert instance.status()["snapshot"]["id"] == snapshot_id
    assert instance.snap_file.read_bytes() == old


def test_a_snapshot_that_was_to_be_carried_on_still_is(ground: Ground) -> None:
    old = content(MIB)
    instance = ground.mounted(ground.image(old))
    instance.expect_log("server was killed|server ended|still in use|before the views answered")
    snapshot_id = instance.status()["snapshot"]["id"]
    instance.kill()
    if interrupted(instance, signal.SIGTERM, "at once") == 0:
        instance._adopt()
    else:
        wait_until(lambda: not processes_about(ground.path))
        assert "Carrying on" in instance.mount().stdout
    assert instance.status()["snapshot"]["id"] == snapshot_id


def test_a_snapshot_that_one_carried_on_which_was_told_to_end_still_is(ground: Ground) -> None:
    old = content(MIB)
    instance = ground.mounted(ground.image(old))
    instance.expect_log("server was killed|server ended|still in use")
    with instance.live_file.open("r+b") as file:
        file.write(b"new")
    instance.kill()
    assert mounted_late(instance, "before") == 130
    assert "Carrying on" in instance.mount().stdout
    assert instance.snap_file.read_bytes() == old
