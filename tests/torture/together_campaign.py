"""The campaign of groups: two images, cut together again and again under load, and no half without the other.

The first MiB of each image has half of a stripe, to which one process writes by turns, each write durable before the
next. The rest of both is one btrfs, its data and its metadata striped over both, with several processes working on
its files. Both are cut in one instant, by turns with it frozen and without; only some of the snapshots are kept. Of
each the stripe is compared: no write is there without all before it. Now and then all stops, and the btrfs of each
pair that is there is checked and mounted: frozen, its files are as after the first so many things that each writer
did; else nothing that was synced is missing, once its log is replayed in a copy.

    scripts/torture together --cuts 200 --seed S
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mounted
from cut_rig import MIB, CutGround
from cuts_content import Progress
from cuts_figures import take_figures
from cuts_ground import child
from ground import new_ground
from mounted import Mounted, run, wait_until
from stripe_content import STRIPE_BYTES, last_write, read_part
from tree_content import Instant, wrong_files
from tree_load import resting_load

_IMAGE_BYTES = 192 * MIB
_NAMES = ("one", "other")
_SMALL = 2 * MIB  # of a store without segments: its log, and what is left of its maps


@dataclass(frozen=True)
class Plan:
    """There are never more than `kept` snapshots, and so many are looked at in one go."""

    seed: int
    cuts: int
    kept: int = 20
    writers: int = 3
    pause_s: float = 0.003
    load_s: float = 0.2
    profile: str = "raid0"
    protect: str = "used"
    durability: str = "process"

    @property
    def options(self) -> tuple[str, ...]:
        return ("--no-snapshot", f"--protect={self.protect}", f"--durability={self.durability}")


class Campaign:
    """Use it as `with Campaign(plan) as one: one.run()`. AssertionError: something is not as it must be."""

    def __init__(self, plan: Plan, say: Callable[[str], None] = lambda line: None) -> None:
        self._plan, self._say = plan, say
        self._draw = random.Random(plan.seed)
        self._stack = contextlib.ExitStack()
        self._instants: dict[str, Instant] = {}
        self._loops: list[Path] = []
        self.freeze_ms: list[float] = []
        self.cut_ms: list[float] = []
        self.counts = {"cuts": 0, "frozen": 0, "writes": 0, "mounted": 0}

    # --- ground ----------------------------------------------------------------------------------------------

    def __enter__(self) -> Campaign:
        plan = self._plan
        with contextlib.ExitStack() as stack:
            self._ground = stack.enter_context(new_ground(CutGround, "snapfs-together-"))
            self._views = [self._mounted(name) for name in _NAMES]
            self._loops = self._attach([view.live_file for view in self._views])
            profiles = ("-d", plan.profile, "-m", plan.profile)
            run("mkfs.btrfs", "-q", "-f", *profiles, *self._loops)
            self._point = self._mount(self._loops, "live")
            # Forgotten by the kernel before the ground takes the devices.
            stack.callback(self._detach_live)
            path = self._ground.path / "progress"
            self._load = stack.enter_context(resting_load(self._point, path, plan.seed, plan.writers, plan.pause_s))
            stripe = self._ground.path / "stripe"
            self._stripe = Progress(stripe, 1)
            words = [stripe, *(view.live_file for view in self._views)]
            self._stripe_writer = stack.enter_context(child("stripe_writer.py", *words))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        # Told of it, so that what comes of it does not hide it.
        self._stack.__exit__(*raised)

    def _mounted(self, name: str) -> Mounted:
        return self._ground.mounted(self._ground.image(_IMAGE_BYTES, f"{name}.img"), *self._plan.options, name=name)

    # --- one btrfs on two devices ----------------------------------------------------------------------------

    def _attach(self, files: list[Path], *options: str) -> list[Path]:
        return [self._ground.loop(file, "--offset", str(STRIPE_BYTES), *options) for file in files]

    def _mount(self, loops: list[Path], name: str, *options: str) -> Path:
        run("btrfs", "device", "scan", *loops)
        return self._ground.mount(loops[0], *options, name=name)

    def _detach(self, loops: list[Path]) -> None:
        """Nothing is mounted from them; also the kernel, which takes those of one UUID together, forgets them."""
        for loop in loops:
            subprocess.run(
                ["btrfs", "device", "scan", "--forget", loop], capture_output=True, timeout=20, check=False
            )
            self._ground.drop_loop(loop)

    def _detach_live(self) -> None:
        if self._loops:
            self._load.end()
            run("umount", self._point)
            self._detach(self._loops)
            self._loops = []

    # --- the campaign ----------------------------------------------------------------------------------------

    def run(self) -> None:
        self._tell("without a snapshot")
        self._load.go_on()
        for number in range(1, self._plan.cuts + 1):
            self._round(f"g{number}", is_frozen=number % 2 == 1)
            if number % self._plan.kept == 0 or number == self._plan.cuts:
                self._look_at_all()
        self._end()

    def _round(self, name: str, *, is_frozen: bool) -> None:
        time.sleep(self._draw.uniform(0, 1) * self._plan.load_s)
        self._load.assert_alive()
        assert self._stripe_writer.poll() is None, "the writer of the stripe has ended"
        done, low = self._load.done, self._stripe.done[0]
        taken = self._cut(name, is_frozen)
        tried, high = self._load.tried, self._stripe.tried[0]
        self._instants[name] = Instant(done, tried, is_frozen)
        while len(self._instants) > self._plan.kept:
            self._instants.pop(next(iter(self._instants)))
        last = last_write([read_part(file) for file in self._files(name)])
        assert low <= last <= high, f"{name}: the last write of the stripe is {last}, due is one of {low} to {high}"
        for view, cut in zip(self._views, taken["cuts"], strict=True):
            assert cut["frozen"] == ([str(self._point)] if is_frozen else []), cut
            found = [(one["name"], one["state"], one["group"]) for one in view.status()["snapshots"]]
            assert found[-1][2] == taken["group"], found
            assert [one[:2] for one in found] == [(kept, "active") for kept in self._instants], found
        self.cut_ms.append(max(cut["cut_ms"] for cut in taken["cuts"]))
        if is_frozen:
            self.freeze_ms.append(taken["cuts"][0]["freeze_ms"])
            self.counts["frozen"] += 1
        self.counts["cuts"] += 1
        self.counts["writes"] = high

    def _cut(self, name: str, is_frozen: bool) -> dict[str, Any]:
        words = ["--name", name, "--keep-last", str(self._plan.kept), "--json"]
        lives = [view.live for view in self._views]
        done = mounted.snapfs("snapshot", *lives, *words, *([] if is_frozen else ["--no-freeze"]))
        assert done.returncode == 0, done.stderr
        taken: dict[str, Any] = json.loads(done.stdout)
        return taken

    def _files(self, name: str) -> list[Path]:
        return [view.snap / ".snapshots" / name / view.image.name for view in self._views]

    # --- the btrfs of each pair ------------------------------------------------------------------------------

    def _look_at_all(self) -> None:
        """The live one must not be there meanwhile: what has the UUID of a btrfs that is mounted belongs to it."""
        self._load.rest_after(0)
        run("umount", self._point)
        self._detach(self._loops)
        self._loops = []
        for name, instant in self._instants.items():
            wrong = self._wrong_in(name, instant)
            assert not wrong, f"{name}, {instant}: {wrong}"
            self.counts["mounted"] += 1
        self._loops = self._attach([view.live_file for view in self._views])
        self._mount(self._loops, "live")
        self._tell(f"after {self.counts}")
        self._load.go_on()

    def _wrong_in(self, name: str, instant: Instant) -> list[str]:
        if instant.is_frozen:
            return self._wrong_on(self._files(name), instant, "--read-only")
        with self._copied(self._files(name)) as copies:
            return self._wrong_on(copies, instant)

    def _wrong_on(self, files: list[Path], instant: Instant, *options: str) -> list[str]:
        loops = self._attach(files, *options)
        try:
            run("btrfs", "device", "scan", *loops)
            run("btrfs", "check", "--readonly", loops[0])
            # What is frozen has nothing to replay, and so is mounted as it is.
            point = self._mount(loops, "then", "-o", "ro" if instant.is_frozen else "rw")
            try:
                return list(wrong_files(point, self._plan.seed, instant))
            finally:
                run("umount", point)
        finally:
            self._detach(loops)

    @contextlib.contextmanager
    def _copied(self, files: list[Path]) -> Iterator[list[Path]]:
        copies = [self._ground.path / f"{name}.copy" for name in _NAMES]
        try:
            for file, copy in zip(files, copies, strict=True):
                run("cp", "--sparse=always", file, copy)
            yield copies
        finally:
            for copy in copies:
                copy.unlink(missing_ok=True)

    # --- the end ---------------------------------------------------------------------------------------------

    def _tell(self, what: str) -> None:
        self._say(f"{what}: stores of {', '.join(f'{self._disk(view) / MIB:.1f} MiB' for view in self._views)}")

    def _disk(self, view: Mounted) -> int:
        return take_figures(view.processes["supervisor"].pid, view.store, None).disk

    def _end(self) -> None:
        """With all of them deleted nothing is left of them, whoever goes on writing."""
        for view in self._views:
            done = mounted.snapfs("delete", view.live, *self._instants)
            assert done.returncode == 0, done.stderr
        self._load.rest_after(0)
        self._stripe_writer.kill()
        self._stripe_writer.wait(20)
        for view in self._views:
            segments = view.store / "segments"
            wait_until(lambda segments=segments: not list(segments.iterdir()), 60, "the end of the records")  # type: ignore[misc]
            wait_until(lambda view=view: self._disk(view) < _SMALL, 60, "the end of what was stored")  # type: ignore[misc]
        self._tell("without a snapshot again")
        self._detach_live()
        for view in self._views:
            view.umount()
            assert not view.store.exists(), f"{view.store} is left"
            assert not view.trouble(), view.trouble()
        done = self._load.done
        wrong = self._wrong_on([view.image for view in self._views], Instant(done, done), "--read-only")
        assert not wrong, f"the images: {wrong}"
        assert last_write([read_part(view.image) for view in self._views]) in (
            self._stripe.done[0],
            self._stripe.tried[0],
        )


def main(arguments: list[str]) -> int:
    """The command `scripts/torture together`; 1 when there was a fault."""
    parser = argparse.ArgumentParser(prog="scripts/torture together", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--kept", type=int, default=20, help="snapshots at once (default 20)")
    parser.add_argument(
        "--profile", choices=["raid0", "single"], default="raid0", help="of the btrfs (default raid0)"
    )
    parser.add_argument("--protect", choices=["used", "all"], default="used")
    parser.add_argument("--durability", choices=["process", "power"], default="process")
    given = parser.parse_args(arguments)
    plan = Plan(
        given.seed,
        given.cuts,
        given.kept,
        profile=given.profile,
        protect=given.protect,
        durability=given.durability,
    )
    mounted.WATCHDOG_S = 300.0 + 10.0 * plan.cuts
    started = time.monotonic()
    print(f"seed {plan.seed}: {plan}", flush=True)
    campaign = Campaign(plan, lambda line: print(line, flush=True))
    try:
        with campaign as one:
            one.run()
    except (AssertionError, OSError, subprocess.TimeoutExpired) as fault:
        print(f"seed {plan.seed}: FAULT: {fault}\n    {campaign.counts}", flush=True)
        return 1
    figures = ", ".join(
        f"{name} median {statistics.median(values):.1f}, max {max(values):.1f}"
        for name, values in (("freeze_ms", campaign.freeze_ms), ("cut_ms", campaign.cut_ms))
    )
    print(f"seed {plan.seed}: right, {time.monotonic() - started:.0f} s; {campaign.counts}; {figures}")
    return 0
