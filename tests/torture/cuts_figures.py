"""What the processes of an instance hold, and what its store occupies: descriptors, mappings, memory, disk space."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

KIB, MIB = 1 << 10, 1 << 20

# How much more than after the first cut each may be after the last. Other descriptors, and mappings of the store's
# files: not one.
MORE_SEGMENTS = 4  # descriptors of segments: each reader of a snapshot has those open that it has read in
MORE_MAPPINGS = 24  # of memory: heaps and stacks of threads that come and go with the load
MORE_PSS = 12 * MIB  # of each process: heaps keep the 1 MiB buffers of requests that came at once, of each thread one
MORE_DISK = 4 * MIB  # the same work stores a little more or less
# And for each snapshot that was kept beside others: what the heap of a process does not give back.
MORE_MAPPINGS_EACH = 8
MORE_PSS_EACH = 2 * MIB


@dataclass(frozen=True)
class Held:
    """By one process. `files` counts mappings of the store's files, `mappings` all."""

    open: tuple[str, ...]  # what its descriptors lead to, but for segments
    segments: int  # descriptors of segments
    mappings: int
    files: int
    pss: int

    @property
    def descriptors(self) -> int:
        return len(self.open)

    def opened_since(self, first: Held) -> list[str]:
        """Whatever cut it is of."""
        now, then = (Counter(re.sub(r"\d{8}|\d+\]", "*", name) for name in held.open) for held in (self, first))
        return sorted((now - then).elements())

    def __str__(self) -> str:
        return (
            f"{self.descriptors}+{self.segments} descriptors, {self.mappings} mappings ({self.files} of the store), "
            f"{self.pss / MIB:.1f} MiB"
        )


@dataclass(frozen=True)
class Figures:
    """`disk` also counts what has no name any more and is still open; `filesystem` is what is used of the one
    that the store has for itself and the image, 0 without one."""

    processes: dict[str, Held]
    disk: int
    filesystem: int
    cuts: tuple[str, ...]

    def lines(self) -> list[str]:
        rows = [f"{name:<11} {held}" for name, held in self.processes.items()]
        total = sum(held.pss for held in self.processes.values())
        used = f", {self.filesystem / MIB:.1f} MiB of its filesystem" if self.filesystem else ""
        return [*rows, f"{'together':<11} {total / MIB:.1f} MiB; store {self.disk / MIB:.1f} MiB{used}"]

    def more_than(self, first: Figures, kept: int = 0) -> list[str]:
        """What is held beyond the bounds above, when so many snapshots were kept at once meanwhile."""
        found = []
        if len(self.cuts) != len(first.cuts):
            found.append(f"there are {len(self.cuts)} cuts in the store: {self.cuts}")
        if self.processes.keys() != first.processes.keys():
            found.append(f"the processes are {[*self.processes]}, were {[*first.processes]}")
        for name, held in self.processes.items():
            before = first.processes.get(name, held)
            found += [
                f"{name} has {now} {what}, had {was} (open since then: {held.opened_since(before)})"
                for what, now, was, more in (
                    ("descriptors", held.descriptors, before.descriptors, 0),
                    ("descriptors of segments", held.segments, before.segments, MORE_SEGMENTS),
                    ("mappings of the store", held.files, before.files, 0),
                    ("mappings", held.mappings, before.mappings, MORE_MAPPINGS + kept * MORE_MAPPINGS_EACH),
                    ("bytes of memory", held.pss, before.pss, MORE_PSS + kept * MORE_PSS_EACH),
                )
                if now > was + more
            ]
        found += [
            f"{what} has {now / MIB:.1f} MiB, had {was / MIB:.1f}"
            for what, now, was in (
                ("the store", self.disk, first.disk),
                ("its filesystem", self.filesystem, first.filesystem),
            )
            if now > was + MORE_DISK
        ]
        return found


def take_figures(supervisor: int, store: Path, filesystem: Path | None) -> Figures:
    """Now; `filesystem` is where the one of the store is mounted, if it has one."""
    pids = [supervisor, *_descendants(supervisor)]
    used = 0
    if filesystem is not None:
        info = os.statvfs(filesystem)
        used = (info.f_blocks - info.f_bfree) * info.f_frsize
    cuts = tuple(sorted(path.name for path in store.glob("cut-*")))
    return Figures(
        {("supervisor" if pid == supervisor else _name(pid)): _held(pid, store) for pid in pids},
        _disk(pids, store),
        used,
        cuts,
    )


def _descendants(pid: int) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *_descendants(int(child))]
    return found


def _name(pid: int) -> str:
    # comm holds 15 bytes: the compactor's is cut short.
    name = Path(f"/proc/{pid}/comm").read_text().strip().removeprefix("snapfs-")
    return next((full for full in ("snapshot", "compactor") if name and full.startswith(name)), name)


def _held(pid: int, store: Path) -> Held:
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    summary = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    pss = next(int(line.split()[1]) for line in summary if line.startswith("Pss:"))
    files = sum(str(store) in line for line in lines)
    opened = tuple(_open(pid))
    others = tuple(name for name in opened if "/segments/" not in name)
    return Held(others, len(opened) - len(others), len(lines), files, pss * KIB)


def _open(pid: int) -> Iterator[str]:
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            yield os.readlink(path)


def _disk(pids: list[int], store: Path) -> int:
    """Each file once, by whatever way it is found."""
    found = {}
    for path in _paths(pids, store):
        with suppress(OSError):
            info = os.stat(path)
            if stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode):
                found[info.st_dev, info.st_ino] = info.st_blocks * 512
    return sum(found.values())


def _paths(pids: list[int], store: Path) -> Iterator[Path]:
    yield store
    yield from store.rglob("*")
    for pid in pids:
        for kind in ("fd", "map_files"):
            with suppress(OSError):
                for path in Path(f"/proc/{pid}/{kind}").iterdir():
                    with suppress(OSError):
                        target = os.readlink(path)
                        if target.startswith(f"{store}/") and target.endswith(" (deleted)"):
                            yield path
