"""CPU time and memory of a peer's server processes, from /proc (see proc(5))."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
SAMPLE_SECONDS = 0.2


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat_fields(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
    found = [pid]
    for known in found:
        found.extend(child for child, parent in parents.items() if parent == known)
    return found


def stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command's name, which may hold anything; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def cpu_seconds(pids: list[int]) -> float:
    """User and system time so far."""
    ticks = 0
    for pid in pids:
        if fields := stat_fields(pid):
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_SECOND


def settle(pids: list[int], limit_seconds: float = 20.0) -> None:
    """Wait until the servers have finished what they still do in the background."""
    deadline = time.monotonic() + limit_seconds
    before = cpu_seconds(pids)
    while time.monotonic() < deadline:
        time.sleep(SAMPLE_SECONDS)
        now = cpu_seconds(pids)
        if now - before < 0.1 * SAMPLE_SECONDS:
            return
        before = now


def memory_bytes(pids: list[int]) -> dict[str, int]:
    """Proportional set size of each, named as "PID comm": what several processes map in common counts once."""
    sizes = {}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:
            continue
        sizes[f"{pid} {name}"] = sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return sizes


class MemoryPeak:
    """Samples the memory of some processes while it is entered; the peak of their sum, and its parts, afterwards."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self._pids = pids
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.peak_bytes = 0
        self.parts: dict[str, int] = {}

    def _sample(self) -> None:
        while True:
            parts = memory_bytes(self._pids())
            if sum(parts.values()) > self.peak_bytes:
                self.peak_bytes, self.parts = sum(parts.values()), parts
            if self._over.wait(SAMPLE_SECONDS):
                return

    def __enter__(self) -> MemoryPeak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
