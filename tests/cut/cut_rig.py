"""Cuts under test: the real command, filesystems mounted from the live view, and what is frozen of them."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ground import Ground
from mounted import COMMAND_TIMEOUT_S, SNAPFS, Mounted, mount_points_below, run, snapfs

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878
_HERE = Path(__file__).parent

# Without what only takes time: lazy initialisation would write while a test measures.
MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}


def freeze(point: Path) -> None:
    _ioctl(point, _FIFREEZE)


def thaw(point: Path) -> None:
    _ioctl(point, _FITHAW)


def _ioctl(point: Path, number: int) -> None:
    fd = os.open(point, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, number, 0)
    finally:
        os.close(fd)


def is_frozen(point: Path) -> bool:
    """Asked with a freeze of our own: refused when it is frozen already."""
    try:
        freeze(point)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    try:
        thaw(point)
    except OSError as error:
        if error.errno != errno.EINVAL:  # whoever thaws it has thawed it for us
            raise
    return False


class CutGround(Ground):
    """A `Ground` that leaves nothing frozen."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._processes: list[subprocess.Popen[str]] = []

    def filesystem(self, instance: Mounted, *options: str, name: str = "fs") -> Path:
        """The filesystem of the live file, mounted through a loop device."""
        return self.mount(self.loop(instance.live_file), *options, name=name)

    def made(self, fstype: str, size_bytes: int, name: str = "disk.img") -> Path:
        """An image with a filesystem on the whole of it."""
        image = self.image(size_bytes, name)
        run(*MKFS[fstype], image)
        return image

    def started(self, *words: str | Path) -> subprocess.Popen[str]:
        """A process that is ended with the test."""
        process = subprocess.Popen(
            [os.fspath(word) for word in words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._processes.append(process)
        return process

    def stopping_cut(
        self, live: Path, *options: str | Path, at: str = "cut", deadline: str = "renewed"
    ) -> subprocess.Popen[str]:
        """`snapfs snapshot` that stops where the server is to be asked for the cut, with everything frozen, or for
        another operation, or (with a "+") where that has been answered. It prints a line there, and goes on at a
        line on its stdin, with the deadline of the request as it was (kept) or a new one (renewed). With `told` it
        is kept, and a line each tells that the server is asked and that its answer is not waited for any more."""
        stopping = (sys.executable, _HERE / "stopping_cut.py", at, deadline)
        process = self.started(*stopping, "snapshot", live, "--json", *options)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "stopped\n", line + (process.stderr.read() if process.stderr else "")
        return process

    def close(self) -> list[str]:
        for point in mount_points_below(self.path):
            with suppress(OSError):
                if str(point) not in self._views():
                    thaw(point)
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=COMMAND_TIMEOUT_S)
        return super().close()

    def _views(self) -> set[str]:
        return {str(point) for instance in self._instances for point in (instance.live, instance.snap)}


def cut(live: Path, *options: str | Path) -> dict[str, Any]:
    """Take a cut, which must succeed; what the command says of it."""
    done = snapfs("snapshot", live, "--json", *options)
    assert done.returncode == 0, done.stderr
    taken: dict[str, Any] = json.loads(done.stdout)
    return taken


def finished(process: subprocess.Popen[str], more: str = "") -> tuple[int, str, str]:
    """The exit code and output of a process that has to end by itself."""
    out, err = process.communicate(more, timeout=COMMAND_TIMEOUT_S)
    return process.returncode, out, err


__all__ = ["COMMAND_TIMEOUT_S", "SNAPFS", "Mounted", "run", "snapfs"]
