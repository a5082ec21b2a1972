"""What is done for each row: groups of rows that share one fresh snapshot.

First touch is only to be had once per snapshot, so those rows have a group each; rows on blocks that are preserved
already, and reads, follow one preparation. Only rows that are wanted are done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from bench import processes
from bench.image import MIB, Master
from bench.measure import Job, Moved, drop_caches, fsync_latencies_us, percentile, read_seconds, resting, run_fio
from bench.peers.base import Peer
from bench.rows import ROWS_BY_NAME

GIB = 1 << 30
T = TypeVar("T")


@dataclass(frozen=True)
class Sizes:
    """How much is done; `divisor` makes everything smaller for a quick look."""

    image_bytes: int = 4 * GIB
    data_bytes: int = 1 * GIB
    free_bytes: int = 256 * MIB
    huge_data_bytes: int = 16 * GIB
    divisor: int = 1
    fsync_count: int = 1000
    backup_rate_bytes: int = 128 * MIB
    # Until the host has taken back what memory the guest has freed, where it does that.
    pause_seconds: float = 5.0

    # The rows of chains say 10 and 100.
    few_snapshots: int = 10
    many_snapshots: int = 100

    def mib(self, amount: int) -> int:
        return amount * MIB // self.divisor


FULL = Sizes()
QUICK = Sizes(
    512 * MIB, 128 * MIB, 32 * MIB, 1 * GIB,
    divisor=8, fsync_count=100, backup_rate_bytes=64 * MIB, pause_seconds=0.0,
    few_snapshots=2, many_snapshots=4,
)  # fmt: skip


@dataclass
class Session:
    """One peer with one fresh snapshot: does the work and keeps the figures."""

    peer: Peer
    master: Master
    sizes: Sizes
    wanted: Container[str]
    values: dict[str, float] = field(default_factory=dict)
    cpu_seconds_per_gib: dict[str, float] = field(default_factory=dict)

    def wants(self, *rows: str) -> bool:
        return any(row in self.wanted and self.peer.name in ROWS_BY_NAME[row].peers for row in rows)

    def keep(self, row: str, value: float) -> None:
        if self.wants(row):
            self.values[row] = value

    def with_cpu(self, rows: tuple[str, ...], moved_bytes: int, work: Callable[[], T]) -> T:
        """Do it, and count what the servers spend on it, also what they finish afterwards."""
        pids = self.peer.pids()
        before = processes.cpu_seconds(pids)
        result = work()
        if pids:
            processes.settle(pids)
            spent = processes.cpu_seconds(pids) - before
            for row in rows:
                if self.wants(row):
                    self.cpu_seconds_per_gib[row] = spent * GIB / moved_bytes
        return result

    def fio(self, rows: tuple[str, ...], job: Job) -> Moved:
        """One job on the live view; its figure goes to all of `rows`, none for a preparation."""
        moved = self.with_cpu(rows, job.length, lambda: run_fio(job, self.peer.live))
        for row in rows:
            in_mb = ROWS_BY_NAME[row].unit == "MB/s"
            self.keep(row, moved.bytes_per_second / 1e6 if in_mb else moved.iops)
        return moved

    def sequential(self, rows: tuple[str, ...], mib: int, pattern: str = "write") -> None:
        self.fio(rows, Job(pattern, MIB, 4, self.master.data, self.sizes.mib(mib)))

    def random(self, rows: tuple[str, ...], depth: int, mib: int, pattern: str = "randwrite") -> None:
        self.fio(rows, Job(pattern, 4096, depth, self.master.data, self.sizes.mib(mib)))

    def fsyncs(self, prefix: str, mib: int) -> None:
        where = self.master.data.head(self.sizes.mib(mib))
        times = fsync_latencies_us(self.peer.live, where, self.sizes.fsync_count)
        self.keep(f"{prefix}-p50", percentile(times, 0.5))
        self.keep(f"{prefix}-p99", percentile(times, 0.99))


def do_seq(session: Session) -> None:
    session.sequential(("seq",), 512)
    if session.wants("buffer"):
        session.keep("buffer", resting(session.peer.side_buffer_bytes) / MIB)
    if not session.wants("snap-read-cold", "snap-read-warm"):
        return
    session.random((), 16, 64)
    cold, warm = [], []
    for reader in session.peer.readers():
        drop_caches()
        rows = ("snap-read-cold",)
        image_bytes = session.master.image_bytes
        cold.append(session.with_cpu(rows, image_bytes, partial(read_seconds, reader.command)))
        warm.append(read_seconds(reader.command))
    session.keep("snap-read-cold", session.master.image_bytes / min(cold) / 1e6)
    session.keep("snap-read-warm", session.master.image_bytes / min(warm) / 1e6)


def do_retouch(session: Session) -> None:
    """Everything here is rewritten inside a part that a first pass has touched already."""
    touched = session.master.data.head(session.sizes.mib(256))
    session.sequential((), 256)
    for row, depth, mib in (("qd1", 1, 64), ("qd16", 16, 128)):
        rows = (f"retouch-{row}", f"fuse-price-{row}")
        if session.wants(*rows):
            session.fio(rows, Job("randwrite", 4096, depth, touched, session.sizes.mib(mib)))
    if session.wants("fuse-price-seq"):
        session.fio(("fuse-price-seq",), Job("write", MIB, 4, touched, touched.length))
    if session.wants("fsync-p50", "fsync-p99"):
        session.fsyncs("fsync", 256)


def do_live_read(session: Session) -> None:
    session.random(("live-read-qd1",), 1, 64, "randread")
    session.random(("live-read-qd16",), 16, 128, "randread")
    session.sequential(("live-read-seq",), 1024, "read")


def do_buffered(session: Session, row: str, pattern: str, mib: int) -> None:
    session.fio((row,), Job(pattern, 4096, 0, session.master.data, session.sizes.mib(mib)))


def do_free_write(session: Session) -> None:
    free = session.master.free
    # The row is about pages that are new to everybody; a peer that starts quickly would find warm ones.
    time.sleep(session.sizes.pause_seconds)
    session.fio(("free-write",), Job("write", MIB, 4, free, free.length))


@dataclass(frozen=True)
class Group:
    """Rows measured on one fresh snapshot."""

    rows: tuple[str, ...]
    work: Callable[[Session], None]

    def peers(self, wanted: Container[str]) -> set[str]:
        return {peer for row in self.rows if row in wanted for peer in ROWS_BY_NAME[row].peers}


GROUPS = (
    Group(("seq-burst",), lambda s: s.sequential(("seq-burst",), 48)),
    Group(("seq", "buffer", "snap-read-cold", "snap-read-warm"), do_seq),
    Group(("rand-qd1",), lambda s: s.random(("rand-qd1",), 1, 32)),
    Group(("rand-qd16",), lambda s: s.random(("rand-qd16",), 16, 64)),
    Group(("rand-buffered",), lambda s: do_buffered(s, "rand-buffered", "randwrite", 64)),
    Group(("seq-buffered",), lambda s: do_buffered(s, "seq-buffered", "write", 128)),
    Group(
        (
            "retouch-qd1",
            "retouch-qd16",
            "fuse-price-qd1",
            "fuse-price-qd16",
            "fuse-price-seq",
            "fsync-p50",
            "fsync-p99",
        ),
        do_retouch,
    ),
    Group(("free-write",), do_free_write),
    Group(("live-read-qd1", "live-read-qd16", "live-read-seq"), do_live_read),
    Group(("fsync-owed-p50", "fsync-owed-p99"), lambda s: s.fsyncs("fsync-owed", 1024)),
)
# Taken while the other rows are done, whichever they are.
PEAK_ROW = "memory"
