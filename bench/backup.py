"""The section of backups: one unmounted image copied by each imager in turn, and backups of a snapshot in use.

A copy starts with nothing of the image in the page cache (programs and libraries stay there), and its time ends
when DEST is on the disk, whether the program sees to that or not. A copy that is wrong
has no figure.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from bench.image import Master, data_extents, make_tree_master, run
from bench.imagers import IMAGERS, Imager, snapfs_command, verify_raw
from bench.peers.snapfs import Snapfs
from bench.release import AFTER_ROW, PEAK_ROW, backup_while_rewriting
from bench.rows import BACKUP_ROWS, SNAPFS, UNRELEASED
from bench.section import Section

SIZE_ROW = "backup-size"
HUGE_BYTES = 1 << 40


class BackupBench(Section):
    """Backups of an unmounted image by each imager, and of a snapshot in use."""

    rows = BACKUP_ROWS
    master: Master
    mounted: Snapfs | None = None

    def run(self) -> None:
        self.master = make_tree_master(self.folder / "tree", self.sizes.image_bytes, self.sizes.data_bytes)
        for round_no in range(self.results.rounds):
            for row in (row for row in IMAGERS if row in self.wanted):
                imagers = [imager for imager in IMAGERS[row] if self.is_asked(imager.name)]
                turn = round_no % max(len(imagers), 1)
                for imager in [*imagers[turn:], *imagers[:turn]]:
                    self.attempt(round_no, imager.name, row, partial(self.copy, row, imager))
        if self.is_asked(SNAPFS):
            self.run_alone()

    def run_alone(self) -> None:
        """What only snapfs does: backups of a huge image, and of a snapshot in use."""
        if SIZE_ROW in self.wanted:
            self.attempt(0, SNAPFS, SIZE_ROW, self.compare_sizes)
        if {PEAK_ROW, AFTER_ROW} & self.wanted:
            for round_no in range(self.results.rounds):
                for name in (SNAPFS, UNRELEASED):
                    self.attempt(round_no, name, PEAK_ROW, partial(self.rewrite, name))

    def copy(self, row: str, imager: Imager) -> None:
        seconds = self.copy_seconds(imager, self.master)
        self.results.values[row][imager.name].append(used_bytes(self.master) / seconds / 1e6)

    def copy_seconds(self, imager: Imager, master: Master) -> float:
        dest = self.folder / "dest"
        try:
            forget(master.path)
            start = time.perf_counter()
            run(*imager.command(master.path, dest))
            flush(dest)
            seconds = time.perf_counter() - start
            if wrong := imager.verify(master, dest):
                raise RuntimeError(f"{wrong:,} bytes of the copy are wrong, so the figure is void")
            return seconds
        finally:
            for path in self.folder.glob("dest*"):
                path.unlink()

    def compare_sizes(self) -> None:
        """The same files in an image of the usual size and in a huge one, in turn."""
        imager = Imager(SNAPFS, lambda image, dest: snapfs_command(image, dest, "raw"), verify_raw)
        huge = make_tree_master(self.folder / "huge", HUGE_BYTES, self.sizes.data_bytes)
        for _ in range(self.results.rounds):
            usual_s = self.copy_seconds(imager, self.master)
            self.results.values[SIZE_ROW][SNAPFS].append(self.copy_seconds(imager, huge) / usual_s)
        huge.path.unlink()

    def rewrite(self, name: str) -> None:
        if self.mounted is None:
            self.mounted = Snapfs(self.folder / "mounted", self.master)
        peer = self.mounted
        try:
            found = backup_while_rewriting(
                peer, self.folder / "dest", self.sizes.backup_rate_bytes, release=name == SNAPFS
            )
        finally:
            peer.close()
            for path in self.folder.glob("dest*"):
                path.unlink()
        for row, value in found.items():
            if row in self.wanted:
                self.results.values[row][name].append(value)


def used_bytes(master: Master) -> int:
    """Of an image that mkfs has just made: what it wrote."""
    with master.path.open("rb") as file:
        return sum(extent.length for extent in data_extents(file.fileno()))


def forget(path: Path) -> None:
    """Out of the page cache: the copy has to read it from the disk."""
    os.sync()
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
