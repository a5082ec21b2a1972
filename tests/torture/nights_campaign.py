"""The campaign of nights: a filesystem lives on, and each night one more backup goes into a directory of them.

By day files are made, changed, cut short, lengthened, punched, defragmented and deleted. Between two nights anything
may happen that must not matter: the image is unmounted, and written to meanwhile; its servers are killed; its store
or the checkpoints in it are gone; a backup or a prune is killed before a step of its own; another cut is taken; the
list of the backups is lost; the side buffer overflows; on a disk with partitions these change places. And the
machine loses its power, by day or in the midst of a backup or a prune: image, store and backups lie on a disk of
which nothing stays but what was synced (`machine_disk`).

While a backup is made, files are deleted, and their space is discarded: that makes holes of the image, not of the
snapshot. Each night's snapshot is kept as a file elsewhere, compared with the backup cell by cell while it is there,
and at the end every night is restored and compared byte by byte, and read by QEMU's tools and the checker of the
filesystem; its files are those of that evening.

    scripts/torture nights --filesystem xfs --nights 30 --seed S
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mounted
from cut_rig import CutGround
from ground import new_ground
from machine_disk import MachineDisk
from mounted import snapfs, unmount
from nights_backups import Backups, ok
from nights_filesystems import IMAGE_MIB, Filesystems, files_in

from tests.machine import MNT_DETACH

_EVENTS = (
    *("nothing", "unmount", "kill", "die", "resume", "cut", "list", "overflow", "prune", "swap"),
    *("changed", "forgotten", "let_go", "power", "power", "power"),
)


@dataclass(frozen=True)
class Plan:
    seed: int
    filesystem: str = "ext4"
    nights: int = 30
    protect: str = "used"
    durability: str = "process"
    events: tuple[str, ...] = _EVENTS


class Campaign:
    """Use it as `with Campaign(plan) as one: one.run()`. AssertionError: something is not as it must be."""

    def __init__(self, plan: Plan, say: Callable[[str], None] = lambda line: None) -> None:
        self._plan, self._say = plan, say
        self._draw = random.Random(plan.seed)
        self._stack = contextlib.ExitStack()
        self.counts = {"full": 0, "compared": 0, "read": 0}

    def __enter__(self) -> Campaign:
        plan = self._plan
        with contextlib.ExitStack() as stack:
            self._ground = stack.enter_context(new_ground(CutGround, "snapfs-nights-"))
            kind = self._draw.choice(("ext4", "xfs"))
            self._disk = MachineDisk(self._ground.path / "disk", self._ground.path / "machine", kind)
            stack.callback(self._disk.close)
            self._filesystems = Filesystems(self._ground, self._draw)
            image = self._filesystems.make(plan.filesystem, f"{self._disk.point.name}/disk.img")
            path = self._disk.point / "backups"
            path.mkdir()
            options = (f"--protect={plan.protect}", f"--durability={plan.durability}")
            self._views = self._ground.instance(image, *options, "--store", self._disk.point / "store")
            stack.callback(self._end_views)
            self._backups = Backups(path, self._ground, self._views, self._filesystems, self._draw)
            self._views.mount()
            # A killed server, and a side buffer that is full on purpose.
            self._views.expect_log(".")
            self._stack = stack.pop_all()
        return self

    def _end_views(self) -> None:
        """Before the disk under them is gone."""
        if self._views.is_running:
            self._views.umount()
        self._views.drop_logs()

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def run(self) -> None:
        for night in range(self._plan.nights):
            self._filesystems.live_on(self._views.live_file)
            event = self._draw.choice(self._plan.events)
            self._say(f"    {event}")
            getattr(self, f"_{event}")()
            made = self._backups.back_up(f"night{night}")
            kind = "full" if made["kind"] == "full" else "compared" if made["why"] else "read"
            self.counts[kind] += 1
            self._say(f"    night{night}: {kind}, {made['read_bytes']} bytes read; {made['why']}")
        self._backups.check_all()

    # --- what must not matter --------------------------------------------------------------------------------

    def _nothing(self) -> None:
        pass

    def _unmount(self) -> None:
        self._views.umount()
        self._views.mount()

    def _kill(self) -> None:
        self._views.kill()
        self._views.mount()

    def _changed(self) -> None:
        """Written to while it is not mounted: the store is refused, and goes."""
        self._views.umount()
        self._filesystems.live_on(self._views.image)
        done = self._views.try_mount()
        assert (done.returncode, "was changed" in done.stderr) == (1, True), done.stderr
        self._without_store()

    def _forgotten(self) -> None:
        self._views.umount()
        self._without_store()

    def _without_store(self) -> None:
        shutil.rmtree(self._views.store)
        self._views.mount()

    def _let_go(self) -> None:
        for one in self._views.status()["checkpoints"]:
            ok("delete", self._views.live, one["id"])

    def _die(self) -> None:
        self._backups.begin()

    def _resume(self) -> None:
        """What can be gone on with is; of what was killed before anything was noted it is said that it cannot."""
        self._die()
        done = snapfs("backup", self._views.live, self._backups.path, "--resume")
        assert done.returncode in (0, 1), done.stderr

    def _cut(self) -> None:
        ok("snapshot", self._views.live)
        self._filesystems.live_on(self._views.live_file)

    def _list(self) -> None:
        self._backups.lose_list()

    def _overflow(self) -> None:
        for words in (("limit", self._views.live, "64K"), ("snapshot", self._views.live)):
            snapfs(*words)
        self._filesystems.live_on(self._views.live_file)
        ok("limit", self._views.live, "1G")

    def _prune(self) -> None:
        self._backups.prune()

    def _swap(self) -> None:
        self._filesystems.swap(self._views.live_file)

    def _power(self) -> None:
        """Everybody is killed, and what the disk has not got is gone."""
        moment = self._draw.choice(("day", "backup", "prune"))
        promised: dict[tuple[int, int], dict[str, str]] = {}
        if moment == "backup":
            self._die()
        elif moment == "prune":
            self._backups.begin_pruning()
        self._views.drop_logs()
        with contextlib.ExitStack() as stack:
            if moment == "day":
                promised = {
                    part: self._filesystems.half_a_day(self._views.live_file, part, kind, stack)
                    for part, kind in self._filesystems.parts.items()
                    if kind != "ntfs"
                }
            self._views.kill()
            self._disk.lose_power()
        for view in (self._views.snap, self._views.live):
            unmount(view, MNT_DETACH)
        self._views.program = self._disk.boot()
        if moment == "prune":
            self._backups.forget_pruned()
        self._backups.check_listed()
        self._views.mount()
        for part, files in promised.items():
            with self._filesystems.mounted(self._views.live_file, part, self._filesystems.parts[part]) as point:
                assert files.items() <= files_in(point).items(), "what was synced is gone with the power"
        self._filesystems.live_on(self._views.live_file)


def main(arguments: list[str]) -> int:
    """The command `scripts/torture nights`; 1 when there was a fault."""
    parser = argparse.ArgumentParser(prog="scripts/torture nights", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--filesystem", choices=sorted(IMAGE_MIB), default="ext4")
    parser.add_argument("--nights", type=int, default=30)
    parser.add_argument("--protect", choices=["used", "all"], default="used")
    parser.add_argument("--durability", choices=["process", "power"], default="process")
    plan = Plan(**vars(parser.parse_args(arguments)))
    mounted.WATCHDOG_S = 300.0 + 60.0 * plan.nights
    started = time.monotonic()
    print(
        f"seed {plan.seed}: {plan.filesystem}, --protect {plan.protect}, --durability {plan.durability}", flush=True
    )
    campaign = Campaign(plan, lambda line: print(line, flush=True))
    try:
        with campaign as one:
            one.run()
    except (AssertionError, OSError, subprocess.TimeoutExpired) as fault:
        traceback.print_exc()
        print(f"seed {plan.seed}: FAULT: {fault}\n    {campaign.counts}", flush=True)
        return 1
    print(f"seed {plan.seed}: right, {time.monotonic() - started:.0f} s; {campaign.counts}")
    return 0
