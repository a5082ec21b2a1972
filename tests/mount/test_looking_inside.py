"""What somebody who looks for a fault can ask of an instance: more in its log."""

from __future__ import annotations

import re
import signal

import pytest
from mounted import Ground, snapfs

MIB = 1 << 20


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
        ("snapfs-live", "released 256 of the blocks 0 to 255"),
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
