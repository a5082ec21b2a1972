"""A backup of a snapshot while a writer rewrites every used block once: what the side buffer takes at most.

The writer is as fast as the backup, which is held to a rate, and takes the blocks in random order. Of what is
not released yet it has then rewritten a share that is greatest half-way: a quarter of the used blocks is what
`--release` cannot avoid, before compression. Without it all of them are preserved in the end.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import processes
from bench.image import MIB, Master, Range, data_extents, pieces, run
from bench.imagers import snapfs_command, verify_raw
from bench.peers.snapfs import PROGRAM, Snapfs

PEAK_ROW = "backup-release"
AFTER_ROW = "backup-release-end"
SAMPLE_SECONDS = 0.05


def backup_while_rewriting(peer: Snapfs, dest: Path, rate_bytes: int, *, release: bool) -> dict[str, float]:
    """What the store takes on disk at most and at the end, in MiB.

    RuntimeError when the backup is not the cut, or a released block was preserved.
    """
    peer.start()
    parts = used_parts(peer.master)
    seconds = sum(part.length for part in parts) / rate_bytes
    more = ("--rate", str(rate_bytes), *(("--release",) if release else ()))
    with StorePeak(peer) as peak, rewriting(peer.live, parts, seconds):
        run(*snapfs_command(peer.live_folder, dest, "raw", *more))
    processes.settle(peer.pids())
    end_bytes = peer.side_buffer_bytes()
    if wrong := verify_raw(peer.master, dest):
        raise RuntimeError(f"{wrong:,} bytes of the backup differ from the cut, so the figures are void")
    if release:
        refuse_late_preserving(peer, parts)
    return {PEAK_ROW: max(peak.peak_bytes, end_bytes) / MIB, AFTER_ROW: end_bytes / MIB}


def refuse_late_preserving(peer: Snapfs, parts: list[Range]) -> None:
    """All is released: writing it all once more must preserve nothing."""
    before = snapshot_status(peer)["preserved_blocks"]
    with rewriting(peer.live, parts, 0):
        pass
    if late := snapshot_status(peer)["preserved_blocks"] - before:
        raise RuntimeError(f"{late:,} blocks were preserved after their release, so the figures are void")


def snapshot_status(peer: Snapfs) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(run(str(PROGRAM), "status", str(peer.live_folder), "--json"))["snapshot"]
    return status


def used_parts(master: Master) -> list[Range]:
    with master.path.open("rb") as file:
        return [piece for extent in data_extents(file.fileno()) for piece in pieces(extent)]


@contextmanager
def rewriting(live: Path, parts: list[Range], seconds: float) -> Iterator[None]:
    """Somebody writes every part once while this is entered, spread over `seconds`; left when all is written."""
    failed: list[OSError] = []

    def work() -> None:
        try:
            write_parts(live, parts, seconds)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if failed:
        raise failed[0]


def write_parts(live: Path, parts: list[Range], seconds: float) -> None:
    dice = random.Random(7)
    order = dice.sample(parts, len(parts))
    start = time.monotonic()
    # O_DIRECT: what lies in the page cache has not reached the snapshot yet, and costs it nothing.
    fd = os.open(live, os.O_WRONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, MIB) as buffer:
            buffer[:] = dice.randbytes(MIB)
            for number, part in enumerate(order):
                time.sleep(max(0.0, start + seconds * number / len(order) - time.monotonic()))
                with memoryview(buffer) as view:
                    os.pwrite(fd, view[: part.length], part.offset)
    finally:
        os.close(fd)


class StorePeak:
    """Samples the disk space of the store while it is entered; `peak_bytes` afterwards."""

    def __init__(self, peer: Snapfs) -> None:
        self.peer = peer
        self.peak_bytes = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> StorePeak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, self.peer.side_buffer_bytes())
