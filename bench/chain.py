"""The section of chains: what many snapshots cost, when they are written behind, read, taken and deleted.

Before each snapshot but the first a little is written, in the same places for every peer. The last one is fresh when
the rows begin. At the end the oldest has to be the image as it was at first.
"""

from __future__ import annotations

import os
import random
import time
from functools import partial
from pathlib import Path

from bench import processes
from bench.image import BLOCK_BYTES, MIB, Master, Range, make_master
from bench.measure import drop_caches, read_seconds, wrong_bytes
from bench.peers.chains import CHAINS, Chain, HugeSnapfs, SnapfsChain
from bench.rows import CHAIN_ROWS, NEWEST, ONE, SNAPFS
from bench.section import Section
from bench.work import Session

HUGE_BYTES = 1 << 40
# Before each cut: single blocks anywhere, and one piece of 1 MiB.
SINGLE_BLOCKS = 128
FEW_ROWS = ("chain-seq-10", "chain-rand-10")
MANY_ROWS = ("chain-seq-100", "chain-rand-100", "chain-read-oldest", "chain-cut-ms", "chain-delete-ms")
READ_ROW, CUT_ROW, DELETE_ROW, MEMORY_ROW = "chain-read-oldest", "chain-cut-ms", "chain-delete-ms", "chain-memory"


class ChainBench(Section):
    """Many snapshots of one image, by each peer."""

    rows = CHAIN_ROWS
    master: Master
    peers: list[Chain]

    def run(self) -> None:
        self.master = make_master(self.folder, self.sizes.image_bytes, self.sizes.data_bytes, self.sizes.free_bytes)
        self.peers = [make(self.folder / make.name, self.master) for make in CHAINS if self.is_asked(make.name)]
        try:
            for round_no in range(self.results.rounds):
                turn = round_no % max(len(self.peers), 1)
                for peer in [*self.peers[turn:], *self.peers[:turn]]:
                    self.run_peer(round_no, peer)
        finally:
            for peer in self.peers:
                peer.close()
        if self.is_asked(SNAPFS) and MEMORY_ROW in self.wanted:
            self.attempt(0, SNAPFS, MEMORY_ROW, self.measure_memory)

    def run_peer(self, round_no: int, peer: Chain) -> None:
        if isinstance(peer, SnapfsChain):
            self.attempt(round_no, peer.name, "with one", partial(self.measure, peer, 1, (*FEW_ROWS, *MANY_ROWS)))
        for count, rows in ((self.sizes.few_snapshots, FEW_ROWS), (self.sizes.many_snapshots, MANY_ROWS)):
            if self.wanted.intersection(rows):
                self.attempt(round_no, peer.name, f"with {count}", partial(self.measure, peer, count, rows))

    def measure(self, peer: Chain, count: int, rows: tuple[str, ...]) -> None:
        """The rows with so many snapshots; those with one are what the others are compared with."""
        session = Session(peer, self.master, self.sizes, self.wanted.intersection(rows))
        newest = Session(peer, self.master, self.sizes, session.wanted)
        try:
            peer.start()
            build(peer, self.master.data, count)
            if count > 1:
                read_whole(session, "s0")
                if peer.name == SNAPFS:
                    read_whole(newest, f"s{count - 1}")
            self.write(peer, session, rows)
            session.keep(CUT_ROW, sorted(peer.cut(f"more{number}") for number in range(5))[2])
            if count > 1 and session.wants(DELETE_ROW):
                start = time.perf_counter()
                peer.delete(f"s{count // 2}")
                session.keep(DELETE_ROW, (time.perf_counter() - start) * 1e3)
            wrong = wrong_bytes(self.master, peer.path_of("s0"), MIB, direct=False)
        finally:
            peer.stop()
        if wrong:
            raise RuntimeError(f"{wrong:,} bytes of the oldest snapshot are wrong, so the figures are void")
        self.keep_session(session, ONE if count == 1 else peer.name)
        self.keep_session(newest, NEWEST)

    def write(self, peer: Chain, session: Session, rows: tuple[str, ...]) -> None:
        """First touches of two fresh snapshots."""
        peer.warm()
        for work, kind in ((partial(session.sequential, mib=512), "seq"), (partial(random_writes, session), "rand")):
            chosen = tuple(row for row in rows if row.startswith(f"chain-{kind}-"))
            if session.wants(*chosen):
                peer.cut(f"fresh-{kind}")
                settle(peer)
                work(chosen)
                settle(peer)

    def keep_session(self, session: Session, column: str) -> None:
        for row, value in session.values.items():
            self.results.values[row][column].append(value)
        for row, value in session.cpu_seconds_per_gib.items():
            self.results.cpu_seconds_per_gib[row][column].append(value)

    def measure_memory(self) -> None:
        peer = HugeSnapfs(self.folder / "huge", HUGE_BYTES)
        count = self.sizes.many_snapshots
        try:
            peer.start()
            build(peer, Range(0, HUGE_BYTES), 1)
            before = memory_bytes(peer)
            build(peer, Range(0, HUGE_BYTES), count, 1)
            for number in range(count):
                with peer.path_of(f"s{number}").open("rb") as file:
                    file.read(MIB)
            taken = memory_bytes(peer) - before
        finally:
            peer.close()
        self.results.values[MEMORY_ROW][SNAPFS].append(taken / MIB / (count - 1))


def build(peer: Chain, where: Range, count: int, first: int = 0) -> None:
    """Snapshots `first` to `count`, with writes before each of them but that of the image as it is."""
    for number in range(first, count):
        if number:
            churn(peer.live, where, number)
        peer.cut(f"s{number}")
    settle(peer)


def churn(live: Path, where: Range, seed: int) -> None:
    dice = random.Random(seed)
    content = dice.randbytes(MIB)
    fd = os.open(live, os.O_WRONLY)
    try:
        for _ in range(SINGLE_BLOCKS):
            block = dice.randrange(where.length // BLOCK_BYTES)
            os.pwrite(fd, content[:BLOCK_BYTES], where.offset + block * BLOCK_BYTES)
        os.pwrite(fd, content, where.offset + dice.randrange(where.length // MIB) * MIB)
        os.fsync(fd)
    finally:
        os.close(fd)


def random_writes(session: Session, rows: tuple[str, ...]) -> None:
    session.random(rows, 16, 64)


def read_whole(session: Session, name: str) -> None:
    if not session.wants(READ_ROW):
        return
    peer = session.peer
    assert isinstance(peer, Chain), "it has many snapshots"
    path, image_bytes = peer.path_of(name), session.master.image_bytes
    drop_caches()
    command = ["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"]
    seconds = session.with_cpu((READ_ROW,), image_bytes, partial(read_seconds, command))
    session.keep(READ_ROW, image_bytes / seconds / 1e6)


def settle(peer: Chain) -> None:
    if pids := peer.pids():
        processes.settle(pids)


def memory_bytes(peer: Chain) -> int:
    return sum(processes.memory_bytes(peer.pids()).values())
