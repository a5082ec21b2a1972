"""Mounts of their own in which mount(8) and umount(8) find the helpers, as after an installation.

libmount looks for helpers in /sbin alone: there lies a directory with a link to each program of the machine's and the
two helpers, in this namespace and nowhere else.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.machine import SNAPFS

_HELPERS = ("mount.fuse.snapfs", "umount.fuse.snapfs")
_SET_UP = """
set -e
mkdir {here}/real {here}/sbin
mount --bind /usr/sbin {here}/real
ln -s {here}/real/* {here}/sbin/
{links}
mount --bind {here}/sbin /usr/sbin
echo ready
cat
"""


class Machine:
    """What is run in that namespace; `path` is a directory that both sides have."""

    def __init__(self, pid: int, path: Path) -> None:
        self._pid, self.path = pid, path

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        words = ["nsenter", "-t", str(self._pid), "-m", f"--wd={self.path}", "--", *map(os.fspath, command)]
        return subprocess.run(
            words, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
        )

    def inside(self, path: Path) -> Path:
        """A path of that namespace, for whoever is outside."""
        return Path(f"/proc/{self._pid}/root{path}")

    def mount_points(self) -> list[str]:
        """Of snapfs, in that namespace."""
        rows = [line.split() for line in Path(f"/proc/{self._pid}/mountinfo").read_text().splitlines()]
        return [row[4] for row in rows if row[row.index("-") + 1] == "fuse.snapfs"]


@contextmanager
def machine_with_helpers(path: Path) -> Iterator[Machine]:
    """It ends with everything that is mounted in it."""
    here = path / "machine"
    here.mkdir()
    links = "\n".join(f"ln -sf {SNAPFS.with_name(name)} {here}/sbin/{name}" for name in _HELPERS)
    words = ["unshare", "-m", "--propagation", "private", "sh", "-c", _SET_UP.format(here=here, links=links)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        machine = Machine(holder.pid, path)
        try:
            yield machine
        finally:
            for point in machine.mount_points()[:1]:
                machine.run(SNAPFS, "umount", "--force", point)
            holder.stdin.close()
