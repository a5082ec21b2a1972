"""What tests do to the machine they run on: commands, loop devices, mounts, and waiting for what comes.

The rigs of the directories add what theirs need, and hand these on.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from snapfs.commands.status import read_status
from snapfs.system.stores import LINK_NAME

SNAPFS = Path(sys.executable).with_name("snapfs")
NOBODY = 65534
# Of one command; a machine that has other things to do needs some of it.
TIMEOUT_S = 90.0
MNT_DETACH = 2
_OCTAL = re.compile(rb"\\([0-7]{3})")
_libc = ctypes.CDLL(None, use_errno=True)


def run(*command: str | Path, timeout_s: float = TIMEOUT_S, **keywords: Any) -> str:
    """Standard output of a command that must succeed."""
    words = [os.fspath(word) for word in command]
    done: subprocess.CompletedProcess[bytes] = subprocess.run(
        words, capture_output=True, timeout=timeout_s, check=False, **keywords
    )
    assert done.returncode == 0, f"{words}: {done.returncode} {done.stderr.decode(errors='replace')}"
    return done.stdout.decode(errors="replace")


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0, what: str = "the awaited condition") -> None:
    """Look until `condition` holds; fails when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come in {timeout_s} s"
        time.sleep(0.01)


def attach_loop(backing: str | Path, *options: str) -> Path:
    """A loop device on `backing`, without partitions: the kernel keeps those that a killed run has added by hand."""
    device = Path(run("losetup", "--find", "--show", *options, backing).strip())
    _forget_partitions(device)
    return device


def detach_loop(device: Path) -> None:
    """Nothing happens when it is attached no more. When this returns its file is let go of: the kernel does that only
    when nobody has the device open, and whoever looks through all devices of the machine has for a moment."""
    file = file_of_loop(device)
    begin_detaching(device)
    wait_until(lambda: file is None or file_of_loop(device) != file, what=f"the end of {device}")


def begin_detaching(device: Path) -> None:
    """It is detached now, or when nobody has it open any more."""
    _forget_partitions(device)
    subprocess.run(["losetup", "-d", device], check=False, capture_output=True, timeout=TIMEOUT_S)


def file_of_loop(device: Path) -> str | None:
    """What a loop device is attached to."""
    try:
        return os.fsdecode(Path("/sys/block", device.name, "loop/backing_file").read_bytes()[:-1])
    except OSError:
        return None


def loops_on(file: str | Path) -> list[Path]:
    """The loop devices that are attached to it."""
    backing = os.path.realpath(file)
    devices = (Path("/dev", entry) for entry in os.listdir("/sys/block") if entry.startswith("loop"))
    return [device for device in devices if file_of_loop(device) == backing]


def _forget_partitions(device: Path) -> None:
    for one in Path("/sys/block", device.name).glob(f"{device.name}p*"):
        number = (one / "partition").read_text().strip()
        subprocess.run(["delpart", device, number], check=False, capture_output=True, timeout=TIMEOUT_S)


@contextmanager
def loop_device(backing: Path, *options: str) -> Iterator[Path]:
    device = attach_loop(backing, *options)
    try:
        yield device
    finally:
        detach_loop(device)


@contextmanager
def mounted(source: str | Path, target: Path, *options: str) -> Iterator[Path]:
    target.mkdir(exist_ok=True)
    run("mount", *options, source, target)
    try:
        yield target
    finally:
        unmount(target, MNT_DETACH)
        if "loop" in ",".join(options).split(","):
            # As in detach_loop.
            wait_until(lambda: not loops_on(source), what=f"the end of the loop device on {source}")


def unmount(point: Path, flags: int = 0) -> int:
    """By the system call; its errno, 0 when it is done."""
    return ctypes.get_errno() if _libc.umount2(os.fsencode(point), flags) else 0


def mount_points_below(directory: Path) -> list[Path]:
    """In the order in which they were mounted."""
    escaped = [line.split()[4] for line in Path("/proc/self/mountinfo").read_bytes().split(b"\n")[:-1]]
    points = [os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), name)) for name in escaped]
    return [Path(point) for point in points if point.startswith(f"{directory}/")]


def status_of(live: Path) -> dict[str, Any]:
    """What the live server of this view says, without the time that a command takes."""
    return read_status(Path(os.readlink(live / os.fsdecode(LINK_NAME))))
