"""The section of nights: the second backup of an image of which little has changed, by each program that makes them.

The first night is a full backup and is not counted (but for the share). Then the same places are written for every
program, and the second night is timed: from its command to the moment when all of it is on the disk, with nothing
of the image in the page cache. What is restored of the second night has to be the image.
"""

from __future__ import annotations

import os
import random
import time
from functools import partial

from bench.backup import HUGE_BYTES, forget
from bench.image import BLOCK_BYTES, MIB, SAME_METADATA, Master, make_master, run
from bench.measure import wrong_bytes
from bench.peers.nightly import NIGHTLIES, Nightly, SnapfsNightly
from bench.rows import NIGHT_ROWS, ROWS_BY_NAME, SNAPFS
from bench.section import Section

USUAL_ROW, HUGE_ROW, SHARE_ROW, CPU_ROW = "increment", "increment-1t", "increment-share", "increment-cpu"
SINGLE_BLOCKS = 256


class NightsBench(Section):
    """The second backup of an image, by each program."""

    rows = NIGHT_ROWS

    def run(self) -> None:
        for row, image_bytes in ((USUAL_ROW, self.sizes.image_bytes), (HUGE_ROW, HUGE_BYTES)):
            if row in self.wanted:
                master = self.make_master(row, image_bytes, self.sizes.data_bytes)
                for round_no in range(self.results.rounds):
                    self.run_round(round_no, row, master)
                master.path.unlink()
        if self.is_asked(SNAPFS) and {SHARE_ROW, CPU_ROW} & self.wanted:
            master = self.make_master(SHARE_ROW, HUGE_BYTES, self.sizes.huge_data_bytes)
            for round_no in range(self.results.rounds):
                self.attempt(round_no, SNAPFS, SHARE_ROW, partial(self.measure_share, master))

    def make_master(self, name: str, image_bytes: int, data_bytes: int) -> Master:
        folder = self.folder / f"{name}-master"
        folder.mkdir()
        metadata = SAME_METADATA if image_bytes == HUGE_BYTES else ()
        return make_master(folder, image_bytes, data_bytes, self.sizes.free_bytes, metadata)

    def run_round(self, round_no: int, row: str, master: Master) -> None:
        asked = [make for make in NIGHTLIES if make.name in ROWS_BY_NAME[row].peers and self.is_asked(make.name)]
        turn = round_no % max(len(asked), 1)
        for make in [*asked[turn:], *asked[:turn]]:
            self.attempt(round_no, make.name, row, partial(self.measure, row, make, master))

    def measure(self, row: str, make: type[Nightly], master: Master) -> None:
        program = make(self.folder / make.name, master)
        try:
            program.start()
            self.night_seconds(program, 0)
            self.change(program, self.sizes.mib(64))
            seconds = self.night_seconds(program, 1)
            refuse_wrong(program, 1)
        finally:
            program.stop()
            run("rm", "-rf", str(program.folder))
        self.keep(row, program.name, seconds)

    def measure_share(self, master: Master) -> None:
        """A tenth is asked where 1 of 16 GiB has changed, and little work of a night in which nothing has."""
        program = SnapfsNightly(self.folder / SNAPFS, master)
        try:
            program.start()
            full = self.night_seconds(program, 0)
            self.change(program, self.sizes.mib(1024))
            share = self.night_seconds(program, 1) / full
            cpu_before = children_cpu_seconds()
            self.night_seconds(program, 2)
            cpu = children_cpu_seconds() - cpu_before
            refuse_wrong(program, 2)
        finally:
            program.stop()
            run("rm", "-rf", str(program.folder))
        for row, value in ((SHARE_ROW, share), (CPU_ROW, cpu)):
            self.keep(row, SNAPFS, value)

    def night_seconds(self, program: Nightly, night: int) -> float:
        forget(program.read_from())
        start = time.perf_counter()
        program.backup(night)
        run("sync", "-f", str(program.backups))
        return time.perf_counter() - start

    def change(self, program: Nightly, changed_bytes: int) -> None:
        dice = random.Random(changed_bytes)
        where = program.master.data
        singles = [dice.randrange(where.length // BLOCK_BYTES) * BLOCK_BYTES for _ in range(SINGLE_BLOCKS)]
        pieces = [piece * MIB for piece in dice.sample(range(where.length // MIB), changed_bytes // MIB)]
        content = dice.randbytes(MIB + len(pieces) + len(singles))
        for path in program.writable():
            with path.open("r+b", buffering=0) as file:
                for number, offset in enumerate(pieces):
                    os.pwrite(file.fileno(), content[number : number + MIB], where.offset + offset)
                for number, offset in enumerate(singles):
                    os.pwrite(file.fileno(), content[number : number + BLOCK_BYTES], where.offset + offset)
                os.fsync(file.fileno())


def refuse_wrong(program: Nightly, night: int) -> None:
    image = Master(program.image, program.master.data, program.master.free)
    if wrong := wrong_bytes(image, program.restored(night), MIB, direct=False):
        raise RuntimeError(f"{wrong:,} bytes of what is restored are wrong, so the figures are void")


def children_cpu_seconds() -> float:
    """Of all commands that have ended."""
    times = os.times()
    return times.children_user + times.children_system
