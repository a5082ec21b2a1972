"""A clean root of this distribution, and a systemd that runs in it: a machine to install a package on.

It has namespaces of its own for mounts, processes, names and control groups; what it has started ends with it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.machine import wait_until

_BOOT_S, _INSTALL_S = 120.0, 1200.0
_BASE = "systemd,systemd-sysv,man-db"
_DEVICES = "null zero full random urandom tty fuse"
_BOOT = """
set -e
echo $$ >{cgroup}/cgroup.procs
exec unshare --fork --kill-child --pid --mount --uts --ipc --cgroup --propagation private sh -ec '
    cd {root}
    mount --bind . .
    cd {root}
    mount -t proc proc proc
    mount -t sysfs -o ro sysfs sys
    {mount_cgroup}
    mount -t tmpfs -o mode=755 tmpfs run
    mount -t tmpfs -o mode=755 tmpfs dev
    for name in {devices}; do touch dev/$name; mount --bind /dev/$name dev/$name; done
    mkdir dev/pts dev/shm old
    mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    pivot_root . old
    umount -l /old
    rmdir /old
    exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --show-status=0
'
"""
_UNIFIED = "mount -t cgroup2 cgroup sys/fs/cgroup"
_BY_NAME = """
    mount -t tmpfs tmpfs sys/fs/cgroup
    mkdir sys/fs/cgroup/systemd
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
"""


class Machine:
    def __init__(self, root: Path, init_pid: int) -> None:
        self.root, self._init_pid = root, init_pid

    def try_run(self, command: str) -> subprocess.CompletedProcess[str]:
        """By the shell of the machine; the caller judges."""
        words = ["nsenter", "-t", str(self._init_pid), "-a", "--wd=/", "sh", "-c", command]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"}
        return subprocess.run(words, capture_output=True, text=True, timeout=_INSTALL_S, check=False, env=environment)

    def run(self, command: str) -> str:
        done = self.try_run(command)
        assert done.returncode == 0, f"{command}: {done.returncode} {done.stdout}{done.stderr}"
        return done.stdout.strip()


def clean_root(root: Path) -> None:
    """The smallest that the distribution has, with systemd."""
    release = Path("/etc/os-release").read_text()
    codename = next(line for line in release.splitlines() if line.startswith("VERSION_CODENAME=")).split("=")[1]
    words = ["debootstrap", "--variant=minbase", f"--include={_BASE}", codename, root]
    done = subprocess.run(words, capture_output=True, text=True, timeout=_INSTALL_S, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


@contextmanager
def booted(root: Path) -> Iterator[Machine]:
    """A machine with this root."""
    top = Path("/sys/fs/cgroup")
    is_unified = (top / "cgroup.procs").exists()
    cgroup = (top if is_unified else top / "systemd") / f"snapfs-test-{os.getpid()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made for a systemd: {error}")
    how = _UNIFIED if is_unified else _BY_NAME
    script = _BOOT.format(root=shlex.quote(str(root)), cgroup=cgroup, devices=_DEVICES, mount_cgroup=how)
    try:
        with subprocess.Popen(["sh", "-c", script], stdin=subprocess.DEVNULL) as leader:
            try:
                yield _await_boot(root, leader)
            finally:
                leader.kill()
    finally:
        _remove(cgroup)


def _await_boot(root: Path, leader: subprocess.Popen[bytes]) -> Machine:
    children = Path(f"/proc/{leader.pid}/task/{leader.pid}/children")

    def runs() -> bool:
        assert leader.poll() is None, "systemd ended"
        pids = children.read_text().split()
        with suppress(OSError, subprocess.SubprocessError):
            state = Machine(root, int(pids[0])).try_run("systemctl is-system-running").stdout if pids else ""
            return state.strip() in ("running", "degraded")
        return False

    wait_until(runs, _BOOT_S, "the start of systemd")
    return Machine(root, int(children.read_text().split()[0]))


def _remove(cgroup: Path) -> None:
    """When the last of its processes has ended."""

    def is_removed() -> bool:
        with suppress(OSError):
            for path in sorted(cgroup.rglob("*"), reverse=True):
                if path.is_dir():
                    path.rmdir()
            cgroup.rmdir()
        return not cgroup.exists()

    wait_until(is_removed, what="the end of the control group")
