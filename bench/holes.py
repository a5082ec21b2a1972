"""The section of holes: programs that look for them copy a snapshot, and beside it a file with real holes.

Both have the same content, a quarter of it used. Of the snapshot nearly all holes are free blocks, which its image
has filled with something: nobody but the map of used blocks knows them. A copy starts with nothing of its source in
the page cache, and its time ends when it is on the disk. A copy that is wrong has no figure.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.backup import forget
from bench.image import MIB, Master, make_master, run
from bench.imagers import qemu_command
from bench.peers.base import disk_bytes
from bench.peers.snapfs import Snapfs
from bench.rows import HOLE_ROWS, RAW, SNAPFS
from bench.section import Section

Words = tuple[str, ...]
SIZE_SUFFIX = "-size"


@dataclass(frozen=True)
class Copier:
    """`command` copies a file to DEST, which `prepare` makes first where there has to be something; `restore` writes
    the content of a file that was copied to its standard output."""

    row: str
    command: Callable[[Path, Path], Words]
    restore: Callable[[Path, Path], Words]
    prepare: Callable[[Path], Words] | None = None


def borg(dest: Path, *words: str) -> Words:
    return ("env", f"BORG_BASE_DIR={dest}.home", "borg", *words)


def restic(dest: Path, *words: str) -> Words:
    settings = (f"RESTIC_REPOSITORY={dest}", "RESTIC_PASSWORD=bench", f"RESTIC_CACHE_DIR={dest}.cache")
    return ("env", *settings, "restic", "-q", *words)


def show(_: Path, dest: Path) -> Words:
    return ("cat", str(dest))


COPIERS = (
    Copier("holes-cp", lambda source, dest: ("cp", "--sparse=auto", str(source), str(dest)), show),
    Copier(
        "holes-tar",
        lambda source, dest: ("tar", "-S", "-C", str(source.parent), "-cf", str(dest), source.name),
        lambda _, dest: ("tar", "-xOf", str(dest)),
    ),
    Copier("holes-rsync", lambda source, dest: ("rsync", "-S", str(source), str(dest)), show),
    Copier("holes-qemu", lambda source, dest: qemu_command(source, dest, "raw"), show),
    Copier(
        "holes-borg",
        lambda source, dest: borg(
            dest, "create", "--sparse", "--chunker-params=fixed,4194304", f"{dest}::one", str(source)
        ),
        lambda source, dest: borg(dest, "extract", "--stdout", f"{dest}::one", str(source).lstrip("/")),
        lambda dest: borg(dest, "init", "--encryption=none", str(dest)),
    ),
    Copier(
        "holes-restic",
        lambda source, dest: restic(dest, "backup", str(source)),
        lambda source, dest: restic(dest, "dump", "latest", str(source)),
        lambda dest: restic(dest, "init"),
    ),
)


class HolesBench(Section):
    """Copies of a snapshot, and of a file with real holes, by each program that copies."""

    rows = HOLE_ROWS

    def run(self) -> None:
        peer = Snapfs(self.folder / SNAPFS, self.make_master())
        try:
            peer.start()
            assert peer.snapshot is not None
            plain = self.folder / "plain.img"
            run("cp", "--sparse=always", str(peer.snapshot), str(plain))
            sources = {SNAPFS: peer.snapshot, RAW: plain}
            for round_no in range(self.results.rounds):
                for copier in COPIERS:
                    if {copier.row, copier.row + SIZE_SUFFIX} & self.wanted:
                        self.run_round(round_no, copier, sources)
        finally:
            peer.close()

    def make_master(self) -> Master:
        """With something in all free blocks."""
        folder = self.folder / "master"
        folder.mkdir()
        something = os.urandom(MIB)
        with (folder / "master.img").open("wb") as file:
            for _ in range(self.sizes.image_bytes // MIB):
                file.write(something)
        return make_master(
            folder, self.sizes.image_bytes, self.sizes.data_bytes, self.sizes.free_bytes, ("-E", "nodiscard")
        )

    def run_round(self, round_no: int, copier: Copier, sources: dict[str, Path]) -> None:
        asked = [name for name in sources if self.is_asked(name)]
        for name in asked if round_no % 2 else reversed(asked):
            self.attempt(round_no, name, copier.row, partial(self.measure, copier, name, sources))

    def measure(self, copier: Copier, name: str, sources: dict[str, Path]) -> None:
        seconds, taken_bytes = self.copy(copier, sources[name], partial(self.refuse_wrong, sources[RAW]))
        self.keep(copier.row, name, seconds)
        self.keep(copier.row + SIZE_SUFFIX, name, taken_bytes / MIB)

    def copy(self, copier: Copier, source: Path, check: Callable[[Words], None]) -> tuple[float, int]:
        dest = self.folder / "dest"
        try:
            if copier.prepare is not None:
                run(*copier.prepare(dest))
            forget(source)
            # The snapshot is read from the image.
            forget(self.folder / SNAPFS / "image.img")
            start = time.perf_counter()
            run(*copier.command(source, dest))
            run("sync", "-f", str(dest))
            seconds = time.perf_counter() - start
            check(copier.restore(source, dest))
            return seconds, disk_bytes(dest)
        finally:
            run("rm", "-rf", *map(str, self.folder.glob("dest*")), str(dest))

    def refuse_wrong(self, plain: Path, restore: Words) -> None:
        with subprocess.Popen(restore, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as restoring:
            compared = subprocess.run(
                ("cmp", "-", str(plain)), stdin=restoring.stdout, capture_output=True, check=False
            )
        if compared.returncode:
            raise RuntimeError("the copy is wrong, so the figure is void")
