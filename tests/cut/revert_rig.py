"""An instance that is reverted: what is said of it, and one that has stopped half-way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from cut_rig import MIB, CutGround, cut, snapfs
from mounted import Mounted

SIZE = 8 * MIB


def new_instance(ground: CutGround) -> Mounted:
    return ground.mounted(ground.image(os.urandom(SIZE)), "--protect", "all")


def write(instance: Mounted, offset: int, length: int = MIB) -> None:
    with instance.live_file.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), os.urandom(length), offset)
        os.fsync(file.fileno())


def kept(instance: Mounted, name: str, offset: int) -> bytes:
    """A snapshot with this name, after which something is written; what it holds."""
    cut(instance.live, "--name", name)
    content = instance.live_file.read_bytes()
    write(instance, offset)
    return content


def reverted(instance: Mounted, *words: str) -> dict[str, Any]:
    done = snapfs("revert", instance.live, *words, "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def refused(instance: Mounted, *words: str) -> str:
    """With a sentence, which is returned."""
    done = snapfs("revert", instance.live, *words)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def names(instance: Mounted) -> list[str]:
    return [one["name"] for one in instance.status()["snapshots"]]


def file_of(instance: Mounted, name: str) -> Path:
    return instance.snap / ".snapshots" / name / instance.image.name


def stopping_revert(ground: CutGround, instance: Mounted, at: str, *words: str) -> subprocess.Popen[str]:
    """A revert to "a" that stops before the server is asked for that, until it is told to go on."""
    stopping = (sys.executable, Path(__file__).with_name("stopping_cut.py"), at, "renewed")
    process = ground.started(*stopping, "revert", instance.live, "a", *words)
    assert process.stdout is not None
    assert process.stdout.readline() == "stopped\n"
    return process


def stopped(instance: Mounted) -> tuple[bytes, str]:
    """A revert to "a" that finds no room; what "a" holds, and the sentence."""
    content = kept(instance, "a", 0)
    for offset in range(1, 8):
        write(instance, offset * MIB)
    assert snapfs("limit", instance.live, "12M").returncode == 0
    return content, refused(instance, "a")


def half_way_back(instance: Mounted) -> tuple[Mounted, bytes]:
    """A revert to "a" has stopped; with what "a" holds."""
    instance.expect_log("has stopped|% of its limit")
    return instance, stopped(instance)[0]
