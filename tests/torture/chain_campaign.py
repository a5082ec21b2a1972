"""The campaign of chains: a real filesystem under load, of which many snapshots are kept, and deleted in any order.

Several processes work on files of a filesystem that is mounted from the live view. One cut with a name follows the
other; each is looked at by the checker of its filesystem and browsed, and its files must be as after the first so
many things that each writer did. Then they are deleted in random order while the load goes on. After each deletion
all that stay are read, every byte that the image has anything at, and one of them is checked, browsed and read whole.
With none left the store has to take what it took before the first.

    scripts/torture chain --filesystem btrfs --cuts 30 --seed S
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import mmap
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mounted
from cut_rig import MIB, CutGround, cut
from cuts_figures import Figures, take_figures
from fsck_rig import assert_at_rest
from ground import new_ground
from mounted import run, wait_until
from tree_content import Instant, wrong_files
from tree_load import resting_load

_PIECE = MIB
_FEW = 20  # actions of each writer
_REST_S = 60.0
# The smallest that mkfs makes of each, and room for the load.
IMAGE_MIB = {"ext4": 96, "xfs": 300, "btrfs": 192}


@dataclass(frozen=True)
class Plan:
    seed: int
    filesystem: str
    cuts: int
    writers: int = 3
    pause_s: float = 0.003
    load_s: float = 0.5
    protect: str = "used"
    durability: str = "process"

    @property
    def options(self) -> tuple[str, ...]:
        return ("--no-snapshot", f"--protect={self.protect}", f"--durability={self.durability}")


@dataclass
class Kept:
    """A snapshot that is there, and what was found in it at first: the digest of each piece."""

    name: str
    id: str
    instant: Instant
    pieces: list[bytes]


class Campaign:
    """Use it as `with Campaign(plan) as one: one.run()`. AssertionError: something is not as it must be."""

    def __init__(self, plan: Plan, say: Callable[[str], None] = lambda line: None) -> None:
        self._plan, self._say = plan, say
        self._draw = random.Random(plan.seed)
        self._stack = contextlib.ExitStack()
        self._kept: list[Kept] = []
        self._buffer = mmap.mmap(-1, _PIECE)
        self.freeze_ms: list[float] = []
        self.counts = {"cuts": 0, "browsed": 0, "compared": 0, "deleted": 0}

    # --- ground ----------------------------------------------------------------------------------------------

    def __enter__(self) -> Campaign:
        plan = self._plan
        with contextlib.ExitStack() as stack:
            self._ground = stack.enter_context(new_ground(CutGround, "snapfs-chain-"))
            self._place = self._ground.path / "place"
            self._place.mkdir()
            image = self._ground.made(plan.filesystem, IMAGE_MIB[plan.filesystem] * MIB)
            self._view = self._ground.mounted(image, *plan.options)
            self._loop = self._ground.loop(self._view.live_file)
            self._root = self._ground.mount(self._loop)
            path = self._ground.path / "progress"
            self._load = stack.enter_context(resting_load(self._root, path, plan.seed, plan.writers, plan.pause_s))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        # Told of it, so that what comes of it does not hide it.
        self._stack.__exit__(*raised)

    # --- the campaign ----------------------------------------------------------------------------------------

    def run(self) -> tuple[Figures, Figures]:
        """What is held before the first cut and after the last is deleted."""
        self._work_and_rest()
        first = self._tell("without a snapshot")
        self._load.go_on()
        for number in range(self._plan.cuts):
            time.sleep(self._draw.uniform(0.5, 1) * self._plan.load_s)
            self._cut(f"cut-{number}")
            self._look_at_files(self._kept[-1])
        self._tell(f"with {self._plan.cuts} snapshots")
        while self._kept:
            self._delete()
            self._verify_rest()
        last = self._end_of_load(first)
        self._tell("without a snapshot again")
        self._end()
        more = last.more_than(first, self._plan.cuts)
        assert not more, "; ".join(more)
        return first, last

    def _tell(self, what: str) -> Figures:
        figures = self._figures()
        self._say(f"{what}, after {sum(self._load.done)} actions:")
        for line in figures.lines():
            self._say(f"    {line}")
        return figures

    def _cut(self, name: str) -> None:
        done = self._load.done
        taken = cut(self._view.live, "--name", name)
        tried = self._load.tried
        assert taken["frozen"] == [str(self._root)], taken
        self.freeze_ms.append(taken["freeze_ms"])
        self.counts["cuts"] += 1
        # Until it is known what is free, blocks that are may have anything in them.
        wait_until(lambda: self._newest()["map"] != "computing", 60, "the map")
        if self._plan.protect == "used":
            assert self._newest()["map"] == "ready", self._newest()
        kept = Kept(name, taken["id"], Instant(done, tried), [])
        kept.pieces = [piece for _, piece in self._pieces(kept, range(self._piece_count))]
        self._kept.append(kept)

    def _newest(self) -> dict[str, Any]:
        found: dict[str, Any] = self._view.status()["snapshot"]
        return found

    def _delete(self) -> None:
        """One, or some at once, by name or by id; sometimes what is theirs has moved before anything is looked at."""
        count = min(len(self._kept), self._draw.choice((1, 1, 1, 2)))
        gone = self._draw.sample(self._kept, count)
        self._kept = [kept for kept in self._kept if kept not in gone]
        words = [self._draw.choice((kept.name, kept.id)) for kept in gone]
        done = mounted.snapfs("delete", self._view.live, *words)
        assert done.returncode == 0, done.stderr
        self.counts["deleted"] += count
        if self._draw.random() < 0.5:
            self._await_merged()

    def _await_merged(self) -> None:
        """Also one that is deleted is written against, while it is the last that was taken."""
        names = {f"cut-{self.counts['cuts'] - 1}", *(kept.name for kept in self._kept)}
        wait_until(lambda: len(list(self._view.store.glob("cut-*"))) == len(names), 60, "the end of what was deleted")

    def _verify_rest(self) -> None:
        self._load.assert_alive()
        found = [(one["name"], one["state"]) for one in self._view.status()["snapshots"]]
        assert found == [(kept.name, "active") for kept in self._kept], found
        if not self._kept:
            return
        pieces = list(self._pieces_with_data())
        for kept in self._kept:
            self._compare(kept, pieces)
        drawn = self._draw.choice(self._kept)
        self._compare(drawn, range(self._piece_count))
        self._look_at_files(drawn)

    # --- what is in a snapshot -------------------------------------------------------------------------------

    def _file(self, kept: Kept) -> Path:
        return self._view.snap / ".snapshots" / kept.name / self._view.image.name

    def _look_at_files(self, kept: Kept) -> None:
        """By the checker and in the files themselves, of what is in the snapshot and not in the page cache."""
        with self._opened(kept):
            assert_at_rest(self._plan.filesystem, self._file(kept))
        words = ("browse", self._view.live, kept.name, self._place, "--json")
        done = mounted.snapfs(*words)
        assert done.returncode == 0, done.stderr
        (shown,) = json.loads(done.stdout)["mounted"]
        assert not shown["is_behind"], shown
        wrong = list(wrong_files(self._place, self._plan.seed, kept.instant))
        done = mounted.snapfs("browse", "--end", self._place)
        assert done.returncode == 0, done.stderr
        assert not wrong, f"{kept.name}: {wrong}"
        self.counts["browsed"] += 1

    def _compare(self, kept: Kept, pieces: list[int] | range) -> None:
        wrong = [number for number, piece in self._pieces(kept, pieces) if piece != kept.pieces[number]]
        assert not wrong, f"{kept.name} has changed in the MiB {wrong}; there are {[one.name for one in self._kept]}"
        self.counts["compared"] += 1

    def _pieces(self, kept: Kept, numbers: list[int] | range) -> Iterator[tuple[int, bytes]]:
        with self._opened(kept) as fd:
            for number in numbers:
                offset = number * _PIECE
                count = os.preadv(fd, [self._buffer], offset)
                assert count == min(_PIECE, self._size - offset), f"{kept.name} gives {count} bytes at {offset}"
                with memoryview(self._buffer) as view:
                    yield number, hashlib.blake2b(view[:count], digest_size=16).digest()

    @contextlib.contextmanager
    def _opened(self, kept: Kept) -> Iterator[int]:
        """To be read past the page cache, which is emptied of it."""
        fd = os.open(self._file(kept), os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            yield fd
        finally:
            os.close(fd)

    @property
    def _size(self) -> int:
        return IMAGE_MIB[self._plan.filesystem] * MIB

    @property
    def _piece_count(self) -> int:
        return self._size // _PIECE

    def _pieces_with_data(self) -> Iterator[int]:
        """Where the image is no hole; where it is one, nothing was ever written."""
        fd = os.open(self._view.image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            end = 0
            while end < self._size:
                try:
                    start = os.lseek(fd, end, os.SEEK_DATA)
                except OSError:
                    return
                number = start // _PIECE
                yield number
                end = (number + 1) * _PIECE
        finally:
            os.close(fd)

    # --- what is held ----------------------------------------------------------------------------------------

    def _work_and_rest(self) -> None:
        self._load.rest_after(_FEW)
        run("sync", "-f", self._root)

    def _figures(self) -> Figures:
        return take_figures(self._view.processes["supervisor"].pid, self._view.store, None)

    def _end_of_load(self, first: Figures) -> Figures:
        """With no snapshot left the writes of a while more cost nothing, and no more is held than at first."""
        self._work_and_rest()
        self._await_merged()
        segments = self._view.store / "segments"
        wait_until(lambda: not any(segments.iterdir()), 20, "the removal of what the deleted ones held")
        until = time.monotonic() + _REST_S
        while (last := self._figures()).more_than(first, self._plan.cuts) and time.monotonic() < until:
            time.sleep(0.2)
        return last

    # --- the end ---------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """The image is as all writers left it, and nothing else is left."""
        done = self._load.done
        self._load.end()
        run("umount", self._root)
        self._ground.drop_loop(self._loop)
        self._view.umount()
        assert not self._view.store.exists(), f"the store is left: {sorted(os.listdir(self._view.store))}"
        assert not self._view.trouble(), self._view.trouble()
        assert_at_rest(self._plan.filesystem, self._view.image)
        root = self._ground.mount(self._ground.loop(self._view.image, "--read-only"), "-o", "ro", name="image")
        wrong = list(wrong_files(root, self._plan.seed, Instant(done, done)))
        assert not wrong, f"the image: {wrong}"
        run("umount", root)


def main(arguments: list[str]) -> int:
    """The command `scripts/torture chain`; 1 when there was a fault."""
    parser = argparse.ArgumentParser(prog="scripts/torture chain", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--filesystem", choices=list(IMAGE_MIB), default="ext4")
    parser.add_argument("--cuts", type=int, default=30)
    parser.add_argument("--writers", type=int, default=3, help="processes (default 3)")
    parser.add_argument("--protect", choices=["used", "all"], default="used")
    parser.add_argument("--durability", choices=["process", "power"], default="process")
    given = parser.parse_args(arguments)
    plan = Plan(
        given.seed,
        given.filesystem,
        given.cuts,
        given.writers,
        protect=given.protect,
        durability=given.durability,
    )
    mounted.WATCHDOG_S = 300.0 + 2.0 * plan.cuts**2
    started = time.monotonic()
    print(f"seed {plan.seed}: {plan}", flush=True)
    campaign = Campaign(plan, lambda line: print(line, flush=True))
    try:
        with campaign as one:
            one.run()
    except (AssertionError, OSError, subprocess.TimeoutExpired) as fault:
        print(f"seed {plan.seed}: FAULT: {fault}\n    {campaign.counts}", flush=True)
        return 1
    freeze = f"freeze_ms median {statistics.median(campaign.freeze_ms):.1f}, max {max(campaign.freeze_ms):.1f}"
    print(f"seed {plan.seed}: right, {time.monotonic() - started:.0f} s; {campaign.counts}; {freeze}")
    return 0
