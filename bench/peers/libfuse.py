"""A pass-through in C on libfuse's low-level interface (passthrough.c), compiled once: the price of FUSE alone."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from bench.image import restore, run
from bench.peers.base import Peer, end, is_mounted, unmount, wait_until
from bench.rows import LIBFUSE

SOURCE = Path(__file__).with_name("passthrough.c")


class Passthrough(Peer):
    """Any server that is started with FILE MOUNTPOINT and shows FILE there under its own name."""

    server: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    @property
    def mountpoint(self) -> Path:
        return self.folder / "mnt"

    def start(self) -> None:
        restore(self.master, self.image)
        self.mountpoint.mkdir(exist_ok=True)
        self.server = subprocess.Popen(
            [*self.command(), str(self.image), str(self.mountpoint)], stdin=subprocess.DEVNULL
        )
        wait_until(lambda: is_mounted(self.mountpoint), f"{self.name} pass-through mounts", self.server)
        self.live = self.mountpoint / self.image.name

    def stop(self) -> None:
        end(self.server)
        self.server = None
        unmount(self.mountpoint)

    def pids(self) -> list[int]:
        return [self.server.pid] if self.server else []


class Libfuse(Passthrough):
    name = LIBFUSE

    def command(self) -> list[str]:
        program = self.folder / "passthrough"
        if not program.exists():
            flags = shlex.split(run("pkg-config", "--cflags", "--libs", "fuse3"))
            run("gcc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(SOURCE), *flags, "-pthread")
        return [str(program)]
