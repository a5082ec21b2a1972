"""What somebody who looks for a fault can ask of an instance: more in its log, and the stacks of its processes."""

from __future__ import annotations

import re
import signal

import pytest
from ground import Ground
from mounted import SERVERS, Mounted, snapfs, wait_until

from snapfs.stacks import STACKS_SIGNAL

MIB = 1 << 20
HAS_TASKS = ("live", "snapshot")


def ask_for_stacks(instance: Mounted, name: str) -> str:
    """What the process writes, from the line on that says so."""
    process = instance.processes[name]
    begins = re.compile(rf"\[{process.pid}\] INFO the stacks of its threads")
    process.send(STACKS_SIGNAL)
    # The last line of the main thread, or of the tasks.
    ends = "in LiveServer" if name == "live" else "in SnapshotServer" if name == "snapshot" else "in <module>"
    wait_until(lambda: (found := begins.search(log := instance.log())) and ends in log[found.end() :])
    found = begins.search(log := instance.log())
    assert found is not None
    return log[found.end() :]


@pytest.mark.parametrize("name", SERVERS)
def test_a_process_tells_its_stacks_and_goes_on(ground: Ground, name: str) -> None:
    instance = ground.mounted(ground.image(MIB))
    said = ask_for_stacks(instance, name)
    assert "Current thread" in said
    assert ("Task " in said) == (name in HAS_TASKS)
    with instance.live_file.open("r+b") as file:
        file.write(b"later")
    assert instance.snap_file.read_bytes() == bytes(MIB)
    assert all(process.is_running for process in instance.processes.values())


def test_every_task_of_the_live_server_is_told(ground: Ground) -> None:
    said = ask_for_stacks(ground.mounted(ground.image(MIB)), "live")
    for task in ("LiveServer.run", "LiveServer._serve_view", "LiveServer._watch_writing", "control.serve"):
        assert re.search(rf"^ *Task snapfs\S*{re.escape(task)}$", said, re.MULTILINE), task


def test_stacks_are_told_in_front_too(ground: Ground) -> None:
    instance = ground.instance(ground.image(MIB))
    front = instance.mount_in_front(ground.path / "stderr")
    assert "supervisor.py" in ask_for_stacks(instance, "supervisor")
    assert front.poll() is None


def test_stacks_asked_for_all_the_time_disturb_no_write(ground: Ground) -> None:
    instance = ground.mounted(ground.image(8 * MIB))
    content = bytes(range(256)) * 16
    with instance.live_file.open("r+b", buffering=0) as file:
        for _ in range(2 * MIB // len(content)):
            for name in SERVERS:
                instance.processes[name].send(STACKS_SIGNAL)
            file.write(content)
    assert instance.live_file.read_bytes()[: 2 * MIB] == content * (2 * MIB // len(content))
    assert instance.snap_file.read_bytes() == bytes(8 * MIB)
    assert all(process.is_running for process in instance.processes.values())


# --- what is said --------------------------------------------------------------------------------------------


def log_of_a_life(ground: Ground, *options: str) -> str:
    """Mounted, written to, cut, released, ended."""
    instance = ground.instance(ground.image(MIB), "--store", ground.path / "store", *options)
    instance.mount()
    with instance.live_file.open("r+b") as file:
        file.write(b"later")
    assert snapfs("snapshot", instance.live).returncode == 0
    assert snapfs("release", instance.live, "--all").returncode == 0
    instance.umount()
    return instance.log()


def test_at_debug_every_process_says_what_it_does(ground: Ground) -> None:
    log = log_of_a_life(ground, "--log-level", "debug")
    for name, said in (
        ("snapfs", "started live, process"),
        ("snapfs-live", r"cut 2 is taken, in \S+ ms"),
        ("snapfs-live", "the map of cut 2: ready"),
        ("snapfs-live", "cut [0-9]+: released 256 of the blocks 0 to 255"),
        ("snapfs-live", "process [0-9]+ asks: TakeCut"),
        ("snapfs-snapshot", "showing cut 2"),
        ("snapfs-compactor", "told to end with 0 slots"),
        ("snapfs", "every server has ended"),
    ):
        assert re.search(rf"{name}\[[0-9]+\] DEBUG {said}", log), said


@pytest.mark.parametrize(("level", "is_said"), [("info", True), ("warning", False)])
def test_less_can_be_said_too(ground: Ground, level: str, is_said: bool) -> None:
    instance = ground.instance(ground.image(MIB), "--store", ground.path / "store", "--log-level", level)
    instance.mount()
    instance.processes["supervisor"].send(signal.SIGTERM)
    instance.await_end()
    log = instance.log()
    assert ("INFO ending on signal 15" in log) == is_said
    assert "DEBUG" not in log
