"""Hooks around the freeze: when they run, what they are told, and what becomes of the cut when they fail."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from cut_rig import MIB, SNAPFS, CutGround, cut, finished, is_frozen, snapfs
from mounted import Mounted, wait_until

NOTE = '#!/bin/sh\necho "$(basename $0) $1" >> {notes}\n'


class HookDirectory:
    """Hooks that note their calls in one file."""

    def __init__(self, path: Path) -> None:
        self.path, self.notes = path / "hooks", path / "notes"
        self.path.mkdir()
        self.notes.touch()

    def add(self, name: str, more: str = "") -> None:
        hook = self.path / name
        hook.write_text(NOTE.format(notes=self.notes) + more)
        hook.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self.notes.read_text().splitlines()


@pytest.fixture
def hooks(ground: CutGround) -> HookDirectory:
    return HookDirectory(ground.path)


@pytest.fixture
def instance(ground: CutGround) -> Mounted:
    return ground.mounted(ground.made("ext4", 64 * MIB))


def snapshot_id(instance: Mounted) -> str:
    return str(instance.status()["snapshot"]["id"])


def test_they_run_in_order_and_back(instance: Mounted, hooks: HookDirectory) -> None:
    hooks.add("20-b")
    hooks.add("10-a")
    hooks.add("30-editor~")
    hooks.add(".hidden")
    (hooks.path / "40-no-program").write_text("")
    cut(instance.live, "--hooks", hooks.path)
    assert hooks.calls == ["10-a freeze", "20-b freeze", "20-b thaw", "10-a thaw"]


def test_they_run_outside_the_freeze(ground: CutGround, instance: Mounted, hooks: HookDirectory) -> None:
    point = ground.filesystem(instance)
    hooks.add("a", f"timeout 5 touch {point}/$1 || exit 1\n")
    taken = cut(instance.live, "--hooks", hooks.path)
    assert taken["frozen"] == [str(point)]
    assert (point / "freeze").exists()
    assert (point / "thaw").exists()


def test_they_are_told_what_it_is_about(ground: CutGround, instance: Mounted, hooks: HookDirectory) -> None:
    point = ground.filesystem(instance)
    hooks.add("a", f"env | grep ^SNAPFS_ | sort >> {hooks.notes}\n")
    taken = cut(instance.live, "--hooks", hooks.path)
    facts = [
        "SNAPFS_ACTION=freeze",
        f"SNAPFS_IMAGE={instance.image}",
        f"SNAPFS_LIVE={instance.live}",
        f"SNAPFS_MOUNT_POINTS={point}",
        f"SNAPFS_SNAP={instance.snap}",
        f"SNAPFS_STORE={instance.store}",
    ]
    assert hooks.calls[1:7] == facts
    assert hooks.calls[7] == "a thaw"
    assert f"SNAPFS_SNAPSHOT_ID={taken['id']}" in hooks.calls[8:]
    assert "SNAPFS_RESULT=done" in hooks.calls[8:]


def test_one_that_fails_cancels_the_cut_and_is_thawed(instance: Mounted, hooks: HookDirectory) -> None:
    hooks.add("a")
    hooks.add("b", "[ $1 = thaw ]\n")
    hooks.add("c")
    before = snapshot_id(instance)
    done = snapfs("snapshot", instance.live, "--hooks", hooks.path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"snapfs: The hook {hooks.path / 'b'} failed with code 1; there was no cut.\n"
    assert hooks.calls == ["a freeze", "b freeze", "b thaw", "a thaw"]
    assert snapshot_id(instance) == before
    assert cut(instance.live)["id"] != before


def test_one_that_hangs_is_killed_with_its_children(instance: Mounted, hooks: HookDirectory) -> None:
    hooks.add("a", f"[ $1 = thaw ] && exit\nsleep 1000 & echo $! > {hooks.notes}.pid; wait\n")
    done = snapfs("snapshot", instance.live, "--hooks", hooks.path, "--hook-timeout", "0.5")
    assert done.returncode == 1
    assert "did not end in 0.5 s; there was no cut" in done.stderr
    pid = Path(f"{hooks.notes}.pid").read_text().strip()
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text())


def test_one_that_cannot_thaw_is_said_and_the_snapshot_is_good(instance: Mounted, hooks: HookDirectory) -> None:
    hooks.add("a", "[ $1 = freeze ]\n")
    hooks.add("b")
    before = snapshot_id(instance)
    done = snapfs("snapshot", instance.live, "--hooks", hooks.path)
    assert done.returncode == 4
    assert "when it was to thaw" in done.stderr
    assert snapshot_id(instance) in done.stdout
    assert snapshot_id(instance) != before


def test_what_they_print_is_no_result(instance: Mounted, hooks: HookDirectory) -> None:
    hooks.add("a", "echo chatter\n")
    done = snapfs("snapshot", instance.live, "--json", "--hooks", hooks.path)
    assert "chatter" not in done.stdout
    assert "chatter" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_a_hook_cancels_and_thaws(
    ground: CutGround, instance: Mounted, hooks: HookDirectory, number: signal.Signals
) -> None:
    point = ground.filesystem(instance)
    hooks.add("a", "[ $1 = thaw ] || sleep 1000\n")
    before = snapshot_id(instance)
    process = ground.started(SNAPFS, "snapshot", instance.live, "--hooks", hooks.path)
    wait_until(lambda: hooks.calls == ["a freeze"])
    process.send_signal(number)
    code, out, err = finished(process)
    assert (code, out, err.strip()) == (130, "", "")
    assert hooks.calls == ["a freeze", "a thaw"]
    assert snapshot_id(instance) == before
    assert not is_frozen(point)


def test_a_directory_that_is_none_is_a_wrong_command_line(instance: Mounted) -> None:
    done = snapfs("snapshot", instance.live, "--hooks", "/nonexistent")
    assert done.returncode == 2
    assert done.stderr.startswith("snapfs: The hooks in /nonexistent cannot be found")


def test_a_dangling_link_is_no_hook(instance: Mounted, hooks: HookDirectory) -> None:
    (hooks.path / "a").symlink_to(hooks.path / "nothing")
    hooks.add("b")
    cut(instance.live, "--hooks", hooks.path)
    assert hooks.calls == ["b freeze", "b thaw"]


def test_one_that_speaks_to_nobody_fails_nothing(instance: Mounted, hooks: HookDirectory) -> None:
    hooks.add("a", "echo something >&2 || exit 1\n")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([SNAPFS, "snapshot", instance.live, "--hooks", hooks.path], stderr=writer, timeout=60)
    os.close(writer)
    assert done.returncode == 0
    assert hooks.calls == ["a freeze", "a thaw"]
