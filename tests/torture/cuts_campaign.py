"""The campaign of cuts: one instance, cut again and again under load, and every snapshot compared whole.

While several processes write, all of them in an order that follows from a seed, one cut follows the other, and a
reader compares each snapshot, every byte of it, with what the writers had done by then. Now and then a part is
released, the side buffer overflows, its limit changes, or a file is read while its snapshot ends. After the first cut
and after the last the same work is done, and the processes must hold no more, nor the store occupy more. Then the
image is compared, and nothing may be left.

    scripts/torture cuts --cuts 1000 --seed S
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mounted
from cuts_content import BLOCK, Progress, contents, sequences
from cuts_figures import MIB, Figures, take_figures
from cuts_ground import child, made_ground, made_place
from cuts_reader import Reader, WrongError
from mounted import run, wait_until

from snapfs.client import connected
from snapfs.commands.limit import limit
from snapfs.commands.release import release
from snapfs.commands.snapshot import SnapshotOptions, snapshot
from snapfs.cut_facts import NOTHING_FROZEN
from snapfs.errors import SnapfsError
from snapfs.protocol import NoteFacts, PrepareCut, TakeCut, deadline_in
from snapfs.system import libc

_ANSWER_S, _REST_S = 60.0, 60.0
_COMMAND_EVERY = 20  # of so many cuts one is taken by the command line, and one by the library
_TELL_EVERY = 100
_WORK = 150  # writes of each writer before what is held is looked at
_READS = 12  # of all of the snapshot, both ways, so that the first time is like any other
_STEADY_S = 4.0  # a little more than an idle instance waits before it rests
_SMALL_LIMIT = MIB
_EXPECTED_LOG = r"the side buffer is full .*: the snapshot is lost|the side buffer has reached \d+ % of its limit"
# What is done with a snapshot once it was compared, and how often.
_STEPS = {"nothing": 50, "release": 15, "overflow": 8, "limit": 7, "across": 20}


@dataclass(frozen=True)
class Plan:
    """`filesystem` is one that image and store have for themselves, made for the campaign, or None."""

    seed: int
    cuts: int
    image_bytes: int = 64 * MIB
    writers: int = 4
    pause_s: float = 0.002
    load_s: float = 0.1
    options: tuple[str, ...] = ("--protect=all",)
    filesystem: str | None = None


class Campaign:
    """Use it as `with Campaign(plan) as one: one.run()`. AssertionError: something is not as it must be."""

    def __init__(self, plan: Plan, say: Callable[[str], None] = lambda line: None) -> None:
        self._plan, self._say = plan, say
        self._draw = random.Random(plan.seed)
        self._stack = contextlib.ExitStack()
        self._writers: list[subprocess.Popen[str]] = []
        self._snapshots: set[str] = set()
        self._told_at = 0
        self.counts = dict.fromkeys((*_STEPS, "cuts", "whole"), 0)

    # --- ground ----------------------------------------------------------------------------------------------

    def __enter__(self) -> Campaign:
        plan = self._plan
        with contextlib.ExitStack() as stack:
            ground = stack.enter_context(made_ground())
            self._place = made_place(ground, plan.filesystem, 4 * plan.image_bytes + 512 * MIB)
            path = ground.path / "place" / "disk.img"
            path.parent.mkdir(exist_ok=True)
            path.touch()
            if plan.filesystem == "btrfs":
                run("chattr", "+C", path)  # else the image alone grows with every write
            with path.open("wb") as file:
                for own in sequences(plan.seed, plan.writers, plan.image_bytes // BLOCK):
                    blocks = range(own.first, own.first + own.count)
                    file.write(contents(own.writer, [0] * own.count, list(blocks)).tobytes())
            self._view = ground.mounted(path, *plan.options)
            # Before a filesystem of its own goes.
            stack.callback(self._view.close)
            self._view.expect_log(_EXPECTED_LOG)
            progress = ground.path / "progress"
            self._progress = Progress(progress, plan.writers)
            self._progress.set_limits([0] * plan.writers)
            facts = (str(plan.seed), str(plan.writers))
            self._reader = stack.enter_context(child("cuts_reader.py", self._view.snap_file, *facts))
            for writer in range(plan.writers):
                words = (self._view.live_file, progress, *facts, str(writer), str(plan.pause_s))
                self._writers.append(stack.enter_context(child("cuts_writer.py", *words)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        # Told of it, so that what comes of it does not hide it.
        self._stack.__exit__(*raised)

    # --- the campaign ----------------------------------------------------------------------------------------

    def run(self) -> tuple[Figures, Figures]:
        """What is held after the first cut and after the last."""
        self._cut()
        first = self._figures_after_work()
        self._say("after the first cut:")
        self._tell(first)
        self._progress.set_limits(None)
        while self.counts["cuts"] < self._plan.cuts - 1:
            self._round()
        self._pause()
        self._cut()
        last = self._figures_after_work(first)
        self._say(f"after {self.counts['cuts']} cuts:")
        self._tell(last)
        self._end()
        more = last.more_than(first)
        assert not more, "; ".join(more)
        return first, last

    def _tell(self, figures: Figures) -> None:
        for line in figures.lines():
            self._say(f"    {line}")

    def _round(self) -> None:
        low = list(self._progress.done)
        self._cut()
        self._ask("whole", low=low, high=list(self._progress.tried))
        self.counts["whole"] += 1
        (step,) = self._draw.choices(list(_STEPS), list(_STEPS.values()))
        self.counts[step] += 1
        getattr(self, f"_{step}")()
        time.sleep(self._draw.uniform(0, self._plan.load_s))
        for writer, process in enumerate(self._writers):
            assert process.poll() is None, f"writer {writer} has ended"
        if self.counts["cuts"] >= self._told_at + _TELL_EVERY:
            self._told_at = self.counts["cuts"]
            self._say(f"{self._told_at} cuts, {sum(self._progress.done)} writes; in use:")
            self._tell(self._figures())

    def _cut(self) -> None:
        """By turns as the command line takes one, as the library does, and, which is quickest, by its steps alone."""
        number = self.counts["cuts"] = self.counts["cuts"] + 1
        if number % _COMMAND_EVERY == 0:
            found = json.loads(self._command("snapshot", self._view.live, "--json"))["id"]
        elif number % _COMMAND_EVERY == _COMMAND_EVERY // 2:
            taken = snapshot(self._view.live, SnapshotOptions())
            assert not taken.problems, taken.problems
            found = taken.id
        else:
            found = self._cut_by_steps()
        assert found not in self._snapshots, f"{found} was taken twice"
        self._snapshots.add(found)

    def _cut_by_steps(self) -> str:
        fd = os.open(self._view.live_file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # What was written before is in the cut, also what the kernel holds back.
            os.fsync(fd)
        finally:
            os.close(fd)
        with connected(self._view.store) as server:
            until = deadline_in(_ANSWER_S)
            generation = server.ask(PrepareCut(deadline_s=until)).generation
            taken = server.ask(TakeCut(generation=generation, deadline_s=until))
            noted = server.ask(NoteFacts(generation=generation, facts=NOTHING_FROZEN, deadline_s=until))
        assert noted.shown, "the snapshot view does not show the cut"
        return taken.id

    def _command(self, *words: str | Path) -> str:
        done = mounted.snapfs(*words)
        assert done.returncode == 0, f"snapfs {words[0]}: {done.stderr}"
        return done.stdout

    # --- what is done with a snapshot ------------------------------------------------------------------------

    def _nothing(self) -> None:
        pass

    def _release(self) -> None:
        """Of what was released every piece fails, and no other."""
        length = self._draw.randrange(1, 9) * MIB
        offset = self._draw.randrange(0, self._plan.image_bytes - length + MIB, MIB)
        if self._draw.random() < 0.1:
            words = (f"--offset={offset}", f"--length={length}")
            self._command("release", self._view.live, *words)
        else:
            assert release(self._view.live, offset, length) == length
        self._ask("again", released=[[offset, length]])

    def _overflow(self) -> None:
        """Some of the image is owed yet, so the next writes need more than there is."""
        self._limit(_SMALL_LIMIT)
        wait_until(lambda: self._view.status()["snapshot"]["state"] == "overflowed", 30, "the overflow")
        self._ask("ended")
        self._limit(None)

    def _limit(self, wanted: int | None = -1) -> None:
        """Without `wanted` one that no cut reaches by itself: what it stores is at most the image."""
        if wanted == -1:
            wanted = self._draw.choice([None, self._plan.image_bytes * 5 // 4])
        if self._draw.random() < 0.1:
            self._command("limit", self._view.live, "none" if wanted is None else str(wanted))
        else:
            limit(self._view.live, wanted)

    def _across(self) -> None:
        """A file that is read while the next cut ends its snapshot: right to the end, and then nothing."""
        if self.counts["cuts"] >= self._plan.cuts - 2:
            return
        self._send("across")
        self._receive("across")
        low = list(self._progress.done)
        self._cut()
        high = list(self._progress.tried)
        self._receive("across")
        self._ask("whole", low=low, high=high)
        self.counts["whole"] += 1

    def _ask(self, question: str, **more: Any) -> None:
        self._send(question, **more)
        self._receive(question)

    def _send(self, question: str, **more: Any) -> None:
        assert self._reader.stdin is not None
        self._reader.stdin.write(json.dumps({"ask": question, **more}) + "\n")
        self._reader.stdin.flush()

    def _receive(self, question: str) -> None:
        assert self._reader.stdout is not None
        assert mounted.readable([self._reader.stdout.fileno()], _ANSWER_S), f"no answer to {question}"
        line = self._reader.stdout.readline()
        assert line, "the reader has ended"
        wrong = json.loads(line)["wrong"]
        assert wrong is None, f"{question}, cut {self.counts['cuts']}: {wrong}; status {self._view.status()}"

    # --- what is held ----------------------------------------------------------------------------------------

    def _pause(self) -> None:
        self._progress.set_limits([0] * self._plan.writers)
        wait_until(lambda: all(self._progress.rests), 30, "the rest of the writers")

    def _figures_after_work(self, first: Figures | None = None) -> Figures:
        """After so many writes of each, when all is quiet; with `first` as soon as no more is held than then."""
        limits = [done + _WORK for done in self._progress.done]
        low = list(self._progress.done)
        self._progress.set_limits(limits)
        self._ask("whole", low=low, high=low)
        self.counts["whole"] += 1
        wait_until(lambda: list(self._progress.done) == limits, 60, "the end of the work")
        for _ in range(_READS):
            self._ask("again", released=[])
        wait_until(lambda: self._view.status()["snapshot"]["map"] != "computing", 60, "the map")
        wait_until(lambda: not self._view.status()["buffer"]["staged_bytes"], 30, "the compactor's rest")
        return self._rested_figures(first)

    def _rested_figures(self, first: Figures | None) -> Figures:
        """Without `first`: when the store has not changed for a while."""
        until = time.monotonic() + _REST_S
        figures, since = self._figures(), time.monotonic()
        while time.monotonic() < until:
            if not figures.more_than(first) if first is not None else time.monotonic() > since + _STEADY_S:
                break
            time.sleep(0.2)
            now = self._figures()
            if (now.disk, now.filesystem) != (figures.disk, figures.filesystem):
                since = time.monotonic()
            figures = now
        return figures

    def _figures(self) -> Figures:
        if self._place is not None:
            fd = os.open(self._place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                libc.syncfs(fd)
            finally:
                os.close(fd)
        return take_figures(self._view.processes["supervisor"].pid, self._view.store, self._place)

    # --- the end ---------------------------------------------------------------------------------------------

    def _end(self) -> None:
        """The image is as all writes left it, and nothing else is left."""
        done = list(self._progress.done)
        assert done == list(self._progress.tried)
        for process in self._writers:
            process.kill()
            process.wait(20)
        self._reader.kill()
        self._view.umount()
        assert not self._view.store.exists(), f"the store is left: {sorted(os.listdir(self._view.store))}"
        assert not self._view.trouble(), self._view.trouble()
        Reader(self._view.image, self._plan.seed, self._plan.writers).whole(done, done)


def main(arguments: list[str]) -> int:
    """The command `scripts/torture cuts`; 1 when there was a fault."""
    parser = argparse.ArgumentParser(prog="scripts/torture cuts", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--cuts", type=int, default=1000)
    parser.add_argument("--image-mib", type=int, default=64, help="size of the image (default 64)")
    parser.add_argument("--writers", type=int, default=4, help="processes; each fourth one through the page cache")
    parser.add_argument("--protect", choices=["all", "used"], default="all")
    parser.add_argument("--durability", choices=["process", "power"], default="process")
    parser.add_argument(
        "--filesystem", choices=["ext4", "btrfs", "tmpfs"], help="make one for image and store (default: /var/tmp)"
    )
    given = parser.parse_args(arguments)
    options = (f"--protect={given.protect}", f"--durability={given.durability}")
    plan = Plan(
        given.seed, given.cuts, given.image_mib * MIB, given.writers, options=options, filesystem=given.filesystem
    )
    mounted.WATCHDOG_S = 300.0 + 5 * plan.cuts
    started = time.monotonic()
    print(f"seed {plan.seed}: {plan}", flush=True)
    campaign = Campaign(plan, lambda line: print(line, flush=True))
    try:
        with campaign as one:
            one.run()
    except (AssertionError, OSError, WrongError, SnapfsError, subprocess.TimeoutExpired) as fault:
        print(f"seed {plan.seed}: FAULT: {fault}\n    {campaign.counts}", flush=True)
        return 1
    print(f"seed {plan.seed}: right, {time.monotonic() - started:.0f} s; {campaign.counts}")
    return 0
