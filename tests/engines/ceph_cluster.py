"""A Ceph of one node on loopback addresses, in a directory: a monitor, a manager, and one OSD in a sparse file."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import uuid
from pathlib import Path

from mounted import run, wait_until

POOL = "rbd"
_OSD_BYTES = 20 << 30


class Cluster:
    """`environment` is what Ceph's commands, and ours, need to find it."""

    def __init__(self, directory: Path) -> None:
        # Sockets are in it, and their addresses are short.
        self.directory = directory
        self.environment = {**os.environ, "CEPH_CONF": str(directory / "ceph.conf")}
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        id_, osd_id, ports = str(uuid.uuid4()), str(uuid.uuid4()), [_free_port(), _free_port()]
        monitor = f"[v2:127.0.0.1:{ports[0]},v1:127.0.0.1:{ports[1]}]"
        for name in ("mon", "mgr", "osd", "run"):
            (self.directory / name).mkdir()
        (self.directory / "ceph.conf").write_text(_CONFIGURATION.format(id_, monitor, self.directory, _OSD_BYTES))
        # Without a map it would wait for other monitors.
        run("monmaptool", "--create", "--fsid", id_, "--addv", "a", monitor, self._path("monmap"))
        self.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", self._path("monmap"), "--mon-data", self._path("mon"))
        self._begin("ceph-mon", "-i", "a", "--mon-data", self._path("mon"))
        self.run("ceph", "--connect-timeout", "30", "mon", "stat")
        self._begin("ceph-mgr", "-i", "x", "--mgr-data", self._path("mgr"))
        self.run("ceph", "osd", "new", osd_id)
        self.run("ceph-osd", "-i", "0", "--osd-data", self._path("osd"), "--mkfs", "--osd-uuid", osd_id)
        self._begin("ceph-osd", "-i", "0", "--osd-data", self._path("osd"))
        wait_until(lambda: "1 up" in self.run("ceph", "osd", "stat"), 60, "the OSD")
        self.run("ceph", "osd", "pool", "create", POOL, "8", "8")
        self.run("rbd", "pool", "init", POOL)

    def run(self, *words: str | Path) -> str:
        return run(*words, env=self.environment)

    def stop(self) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGKILL)
            process.wait()

    def _begin(self, *words: str | Path) -> None:
        log = self._path("run") / f"{words[0]}.out"
        with log.open("wb") as file:
            process = subprocess.Popen([*words, "-f"], env=self.environment, stdout=file, stderr=file)
        self._processes.append(process)

    def _path(self, name: str) -> Path:
        return self.directory / name


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
    return port


_CONFIGURATION = """
[global]
fsid = {0}
mon host = {1}
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail warn = 1
mon data avail crit = 1
public network = 127.0.0.0/8
run dir = {2}/run
admin socket = {2}/run/$name.$pid.asok
log file = {2}/run/$name.log
pid file = {2}/run/$name.pid
bluestore block create = true
bluestore block size = {3}
osd memory target = 939524096
rbd default features = 1
"""
