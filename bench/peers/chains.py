"""Peers that keep many snapshots: what `ChainBench` asks of each besides what the other rows do.

They begin with the image as the master is and with no snapshot; `cut` makes the next one.
"""

from __future__ import annotations

import json
import subprocess
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

from bench.image import MIB, Master, Range, reload, restore, run
from bench.peers.base import Peer, end, is_mounted, unmount, wait_until
from bench.peers.reflink import Btrfs, Reflink, Xfs
from bench.peers.snapfs import PROGRAM, Snapfs
from bench.rows import QEMU


class Chain(Peer):
    """One with many snapshots, each by a name of its own."""

    @abstractmethod
    def cut(self, name: str) -> float:
        """Take the next snapshot; how long it took, in ms."""

    @abstractmethod
    def path_of(self, name: str) -> Path:
        """Where it can be read, until the next call."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """One between others; returns when nothing of it is left."""

    def warm(self) -> None:
        """What was read since the start decides no figure of what is written."""
        reload(self.image)


class SnapfsChain(Chain, Snapfs):
    def cut(self, name: str) -> float:
        answer: dict[str, Any] = json.loads(
            run(str(PROGRAM), "snapshot", str(self.live_folder), "--name", name, "--json")
        )
        # Of one that has a successor before that is known, all holes of the image have to be read.
        self.wait_for_map()
        return float(answer["cut_ms"])

    def path_of(self, name: str) -> Path:
        return self.snapshot_folder / ".snapshots" / name / self.image.name

    def delete(self, name: str) -> None:
        before = self.cuts()
        run(str(PROGRAM), "delete", str(self.live_folder), name, "-q")
        # Hidden at once, and merged into the one before it.
        wait_until(lambda: self.cuts() < before, "what it holds is merged")

    def cuts(self) -> int:
        return sum(path.name.startswith("cut-") for path in self.store.iterdir())


class HugeSnapfs(SnapfsChain):
    """Of an image that is one hole, without a filesystem."""

    def __init__(self, folder: Path, image_bytes: int) -> None:
        folder.mkdir()
        hole = folder / "hole.img"
        run("truncate", "-s", str(image_bytes), str(hole))
        super().__init__(folder / "peer", Master(hole, Range(0, image_bytes), Range(0, MIB)))

    def wait_for_map(self) -> None:
        """There is nothing that could have one."""


class ReflinkChain(Chain, Reflink):
    def start(self) -> None:
        if not is_mounted(self.mountpoint):
            self.make_filesystem()
        self.live = self.mountpoint / "image.img"
        run("cp", "--sparse=always", "--reflink=never", str(self.master.path), str(self.live))
        run("sync", "-f", str(self.live))
        reload(self.backing)

    def cut(self, name: str) -> float:
        # What is dirty would be written out by the copy.
        run("sync", "-f", str(self.live))
        start = time.perf_counter()
        run("cp", "--reflink=always", str(self.live), str(self.path_of(name)))
        return (time.perf_counter() - start) * 1e3

    def path_of(self, name: str) -> Path:
        return self.mountpoint / f"{name}.img"

    def delete(self, name: str) -> None:
        self.path_of(name).unlink()
        run("sync", "-f", str(self.mountpoint))

    def warm(self) -> None:
        reload(self.backing)

    def stop(self) -> None:
        if is_mounted(self.mountpoint):
            for path in self.mountpoint.glob("*.img"):
                path.unlink()
            run("sync", "-f", str(self.mountpoint))


class XfsChain(ReflinkChain, Xfs):
    pass


class BtrfsChain(ReflinkChain, Btrfs):
    pass


class QemuChain(Chain):
    """Overlays one upon the other, the last one exported over FUSE; a snapshot is all that is below the overlay that
    was begun then. For each cut the export is begun anew, which is not counted."""

    name = QEMU
    server: subprocess.Popen[bytes] | None = None
    reader: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        restore(self.master, self.image)
        self.layers = [self.image]
        self.below: dict[str, Path] = {}
        self.live, self.read_at = self.folder / "live.img", self.folder / "read.img"
        self.server = self.export(self.image, self.live, writable=True)

    def export(self, layer: Path, at: Path, *, writable: bool) -> subprocess.Popen[bytes]:
        kind = "raw" if layer == self.image else "qcow2"
        mode = "" if writable else ",read-only=on"
        at.touch()
        node = f"{kind},node-name=n,file.driver=file,file.filename={layer}{mode}"
        export = f"fuse,id=e,node-name=n,mountpoint={at},writable={'on' if writable else 'off'}"
        server = subprocess.Popen(
            ["qemu-storage-daemon", "--blockdev", node, "--export", export], stdin=subprocess.DEVNULL
        )
        wait_until(lambda: is_mounted(at), f"qemu-storage-daemon exports {layer.name}", server)
        return server

    def end_live(self) -> None:
        end(self.server)
        self.server = None
        unmount(self.live)

    def cut(self, name: str) -> float:
        self.end_live()
        below = self.layers[-1]
        layer = self.folder / f"{name}.qcow2"
        kind = "raw" if below == self.image else "qcow2"
        start = time.perf_counter()
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", str(below), "-F", kind, str(layer))
        taken_ms = (time.perf_counter() - start) * 1e3
        self.layers.append(layer)
        self.below[name] = below
        self.server = self.export(layer, self.live, writable=True)
        return taken_ms

    def path_of(self, name: str) -> Path:
        self.end_reader()
        self.reader = self.export(self.below[name], self.read_at, writable=False)
        return self.read_at

    def end_reader(self) -> None:
        end(self.reader)
        self.reader = None
        unmount(self.read_at)

    def delete(self, name: str) -> None:
        """The overlay that was begun then is committed into the one below, on which the next one lies then."""
        self.end_reader()
        self.end_live()
        at = self.layers.index(self.folder / f"{name}.qcow2")
        run("qemu-img", "commit", "-q", "-d", str(self.layers[at]))
        run("qemu-img", "rebase", "-u", "-b", str(self.layers[at - 1]), "-F", "qcow2", str(self.layers[at + 1]))
        self.layers.pop(at).unlink()
        self.server = self.export(self.layers[-1], self.live, writable=True)

    def stop(self) -> None:
        if hasattr(self, "layers"):
            self.end_reader()
            self.end_live()
            for layer in self.layers[1:]:
                layer.unlink(missing_ok=True)

    def pids(self) -> list[int]:
        return [server.pid for server in (self.server, self.reader) if server]


CHAINS: tuple[type[Chain], ...] = (SnapfsChain, QemuChain, XfsChain, BtrfsChain)
