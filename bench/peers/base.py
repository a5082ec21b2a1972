"""What the bench asks of a peer.

`start` makes the peer's image equal to the master and takes a fresh snapshot of it; `live` and `snapshot` can be
used when it returns. `stop` ends it whatever state it is in. `close` gives back what was made once for all starts.
"""

from __future__ import annotations

import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.image import MIB, Master

READY_SECONDS = 20.0


class PeerError(Exception):
    """A peer could not be started; its rows stay empty and the others go on."""


@dataclass(frozen=True)
class Reader:
    """A command that reads a whole snapshot; of several the fastest counts."""

    name: str
    command: list[str]


class Peer(ABC):
    name = ""
    # The largest read of the snapshot that is answered rightly, and whether it must pass by the page cache.
    read_bytes = 1 * MIB
    read_direct = False

    def __init__(self, folder: Path, master: Master) -> None:
        self.folder = folder
        self.master = master
        self.image = folder / "image.img"
        self.live = self.image
        self.snapshot: Path | None = None
        folder.mkdir()

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None: ...

    def close(self) -> None:
        self.stop()

    def pids(self) -> list[int]:
        """Server processes; none where the kernel does the work, whose CPU time is not counted."""
        return []

    def side_buffer_bytes(self) -> int:
        """Disk space taken by what the snapshot preserved."""
        return 0

    def readers(self) -> list[Reader]:
        return [Reader("dd", ["dd", f"if={self.snapshot}", "of=/dev/null", "bs=1M", "status=none"])]


def wait_until(condition: Callable[[], bool], what: str, server: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        if server is not None and server.poll() is not None:
            raise PeerError(f"{what}: the server ended with {server.returncode}")
        if time.monotonic() > deadline:
            raise PeerError(f"{what}: not within {READY_SECONDS:.0f} s")
        time.sleep(0.02)


def is_mounted(path: Path) -> bool:
    try:
        return path.lstat().st_dev != path.parent.lstat().st_dev
    except OSError:
        # A FUSE mount whose server is gone answers ENOTCONN, and is still there.
        return f" {path} " in Path("/proc/self/mounts").read_text(errors="surrogateescape")


def unmount(path: Path) -> None:
    """Gone afterwards, even when its server is dead or somebody still holds it."""
    for how in ([], ["-l"]):
        if is_mounted(path):
            subprocess.run(["umount", *how, str(path)], capture_output=True, check=False)


def end(server: subprocess.Popen[bytes] | None) -> None:
    if server is None:
        return
    server.terminate()
    try:
        server.wait(READY_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def disk_bytes(*paths: Path) -> int:
    """Space that files and whole folders take on disk."""
    total = 0
    for path in paths:
        for folder, _, names in os.walk(path):
            total += sum(Path(folder, name).stat().st_blocks * 512 for name in names)
        if path.is_file():
            total += path.stat().st_blocks * 512
    return total
