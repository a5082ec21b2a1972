"""snapfs itself, started as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import processes
from bench.image import restore, run
from bench.peers.base import Peer, disk_bytes, is_mounted, unmount, wait_until
from bench.rows import SNAPFS

PROGRAM = Path(sys.executable).with_name("snapfs")


class Snapfs(Peer):
    name = SNAPFS
    main_pid: int | None = None

    @property
    def live_folder(self) -> Path:
        return self.folder / "live"

    @property
    def snapshot_folder(self) -> Path:
        return self.folder / "snap"

    def start(self) -> None:
        restore(self.master, self.image)
        for folder in (self.live_folder, self.snapshot_folder):
            folder.mkdir(exist_ok=True)
        run(str(PROGRAM), "mount", str(self.image), str(self.live_folder), str(self.snapshot_folder))
        self.live = self.live_folder / self.image.name
        self.snapshot = self.snapshot_folder / self.image.name
        status = self.status()
        self.main_pid = status["pid"]
        self.store = Path(status["store"])
        self.wait_for_map()
        processes.settle(self.pids())

    def wait_for_map(self) -> None:
        """The rows are about a snapshot that knows what is free; finding that out takes about half a second, once."""
        wait_until(lambda: self.status()["snapshot"]["map"] == "ready", "the map of used blocks")

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(run(str(PROGRAM), "status", str(self.live_folder), "--json"))
        return answer

    def stop(self) -> None:
        self.main_pid = None
        if is_mounted(self.live_folder):
            subprocess.run([str(PROGRAM), "umount", str(self.live_folder)], capture_output=True, check=False)
        for folder in (self.live_folder, self.snapshot_folder):
            unmount(folder)

    def pids(self) -> list[int]:
        return processes.tree(self.main_pid) if self.main_pid else []

    def side_buffer_bytes(self) -> int:
        return disk_bytes(self.store)
