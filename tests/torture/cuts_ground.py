"""What the campaign of cuts stands on: a directory that goes with it, and programs that end with it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ground import Ground
from mounted import run


@contextlib.contextmanager
def made_ground() -> Iterator[Ground]:
    """AssertionError at the end when something was left, or logged that nobody expected."""
    ground = Ground(Path(tempfile.mkdtemp(prefix="snapfs-cuts-", dir="/var/tmp")).resolve())
    try:
        yield ground
    finally:
        wrong = ground.close()
    assert not wrong, "\n".join(wrong)


def made_place(ground: Ground, kind: str | None, size_bytes: int) -> Path | None:
    """Where a filesystem of this kind and size is mounted; None without one."""
    if kind is None:
        return None
    if kind == "tmpfs":
        return ground.mount(Path("none"), "-t", kind, "-o", f"size={size_bytes}", name="place")
    disk = ground.image(size_bytes, "disk")
    run(f"mkfs.{kind}", "-q", disk)
    return ground.mount(ground.loop(disk), name="place")


@contextlib.contextmanager
def child(script: str, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """One of the programs beside this, until the end of the block."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *map(str, words)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()
