"""QEMU's copy-before-write filter: a writable and a frozen view over FUSE, the frozen one also over NBD.

Every start makes a fresh graph with an empty side file, so the cut is the start. Reads of the frozen view that are
larger than its 64 KiB clusters return live data in QEMU 7.2, so it is read in direct requests of just that size.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from bench.image import restore, run
from bench.peers.base import Peer, Reader, disk_bytes, end, is_mounted, unmount, wait_until
from bench.rows import QEMU

CLUSTER_BYTES = 64 << 10


class Qemu(Peer):
    name = QEMU
    read_bytes = CLUSTER_BYTES
    read_direct = True
    server: subprocess.Popen[bytes] | None = None
    rendezvous: tempfile.TemporaryDirectory[str] | None = None

    def start(self) -> None:
        restore(self.master, self.image)
        self.side = self.folder / "side.qcow2"
        # A socket's path may have 107 bytes, which the folder of the bench alone may exceed.
        self.rendezvous = tempfile.TemporaryDirectory(prefix="snapfs-bench-")
        self.socket = Path(self.rendezvous.name) / "nbd.sock"
        self.live = self.folder / "live.img"
        self.snapshot = self.folder / "snap.img"
        for view in (self.live, self.snapshot):
            view.touch()
        run("qemu-img", "create", "-q", "-f", "qcow2", str(self.side), str(self.master.image_bytes))
        self.server = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL)
        wait_until(self.is_ready, "qemu-storage-daemon exports its views", self.server)

    def command(self) -> list[str]:
        file: dict[str, Any] = {"driver": "file", "discard": "unmap"}
        nodes: list[dict[str, Any]] = [
            {**file, "node-name": "image", "filename": str(self.image)},
            {
                "driver": "qcow2",
                "node-name": "side",
                "file": {**file, "filename": str(self.side)},
                "discard": "unmap",
            },
            {"driver": "copy-before-write", "node-name": "live", "file": "image", "target": "side"},
            {"driver": "snapshot-access", "node-name": "frozen", "file": "live"},
        ]
        exports: list[dict[str, Any]] = [
            {"type": "fuse", "id": "e1", "node-name": "live", "mountpoint": str(self.live), "writable": True},
            {"type": "fuse", "id": "e2", "node-name": "frozen", "mountpoint": str(self.snapshot)},
            {"type": "nbd", "id": "e3", "node-name": "frozen", "name": "snap"},
        ]
        words = ["qemu-storage-daemon"]
        for node in nodes:
            words += ["--blockdev", json.dumps(node)]
        words += ["--nbd-server", json.dumps({"addr": {"type": "unix", "path": str(self.socket)}})]
        for export in exports:
            words += ["--export", json.dumps(export)]
        return words

    def is_ready(self) -> bool:
        assert self.snapshot is not None
        return is_mounted(self.live) and is_mounted(self.snapshot) and self.socket.exists()

    def stop(self) -> None:
        end(self.server)
        self.server = None
        for name in ("live.img", "snap.img"):
            unmount(self.folder / name)
        (self.folder / "side.qcow2").unlink(missing_ok=True)
        if self.rendezvous:
            self.rendezvous.cleanup()
            self.rendezvous = None

    def pids(self) -> list[int]:
        return [self.server.pid] if self.server else []

    def side_buffer_bytes(self) -> int:
        return disk_bytes(self.side)

    def readers(self) -> list[Reader]:
        dd = ["dd", f"if={self.snapshot}", "of=/dev/null", "bs=64k", "iflag=direct", "status=none"]
        readers = [Reader("dd, 64 KiB direct", dd)]
        if shutil.which("nbdcopy"):
            readers.append(Reader("nbdcopy", ["nbdcopy", f"nbd+unix:///snap?socket={self.socket}", "null:"]))
        return readers
