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
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mounted
from cut_rig import MIB, MKFS, CutGround
from ground import new_ground
from machine_disk import MachineDisk
from mounted import run, snapfs, unmount, wait_until

from tests.machine import MNT_DETACH

_DYING = Path(__file__).parents[1] / "nightly" / "dying_backup.py"
_ROOT = Path(__file__).parents[2]
_STEPS = 60
# The smallest that mkfs makes of each, and room for the files.
IMAGE_MIB = {"ext4": 64, "xfs": 300, "btrfs": 192, "disk": 100}
_MKFS = {**MKFS, "ntfs": ("mkfs.ntfs", "-q", "-F", "-Q")}
_CHECK = {
    "ext4": ("e2fsck", "-fn"),
    "xfs": ("xfs_repair", "-n", "-f"),
    "btrfs": ("btrfs", "check", "--readonly"),
    "ntfs": ("ntfsfix", "--no-action"),
}
_DEFRAGMENT = {"ext4": ("e4defrag",), "xfs": ("xfs_fsr",), "btrfs": ("btrfs", "filesystem", "defragment", "-r")}
_MOUNT = {"ntfs": ("-t", "ntfs-3g")}
_EVENTS = (
    *("nothing", "unmount", "kill", "die", "resume", "cut", "list", "overflow", "prune", "swap"),
    *("changed", "forgotten", "let_go", "power", "power", "power"),
)
# A disk: a GPT with two partitions of the same size, in sectors.
_DISK = "label: gpt\nstart=2048, size=98304\nstart=100352, size=98304\n"
_PART_BYTES = 98304 * 512
_PART_OFFSETS = (2048 * 512, 100352 * 512)


@dataclass(frozen=True)
class Plan:
    seed: int
    filesystem: str = "ext4"
    nights: int = 30
    protect: str = "used"
    durability: str = "process"
    events: tuple[str, ...] = _EVENTS


@dataclass(frozen=True)
class Night:
    """What a backup has to be: a copy of its snapshot, and what was where, with the files of each filesystem."""

    kept: Path
    parts: dict[tuple[int, int], str]
    files: dict[str, dict[str, str]]


class Campaign:
    """Use it as `with Campaign(plan) as one: one.run()`. AssertionError: something is not as it must be."""

    def __init__(self, plan: Plan, say: Callable[[str], None] = lambda line: None) -> None:
        self._plan, self._say = plan, say
        self._draw = random.Random(plan.seed)
        self._stack = contextlib.ExitStack()
        self._nights: dict[str, Night] = {}
        # What a backup that was killed was of: it may turn out to be whole.
        self._begun: Night | None = None
        # By filesystem: the files in it, by their hashes.
        self._files: dict[str, dict[str, str]] = {}
        self.counts = {"full": 0, "compared": 0, "read": 0}

    def __enter__(self) -> Campaign:
        plan = self._plan
        with contextlib.ExitStack() as stack:
            self._ground = stack.enter_context(new_ground(CutGround, "snapfs-nights-"))
            kind = self._draw.choice(("ext4", "xfs"))
            self._disk = MachineDisk(self._ground.path / "disk", self._ground.path / "machine", kind)
            stack.callback(self._disk.close)
            image = self._made()
            self._backups = self._disk.point / "backups"
            self._backups.mkdir()
            options = (f"--protect={plan.protect}", f"--durability={plan.durability}")
            self._views = self._ground.instance(image, *options, "--store", self._disk.point / "store")
            stack.callback(self._end_views)
            self._views.mount()
            # A killed server, and a side buffer that is full on purpose.
            self._views.expect_log(".")
            self._stack = stack.pop_all()
        return self

    def _made(self) -> Path:
        """The image; `_parts` are its filesystems by offset and size."""
        plan = self._plan
        image = self._ground.image(IMAGE_MIB[plan.filesystem] * MIB, f"{self._disk.point.name}/disk.img")
        if plan.filesystem != "disk":
            self._parts = {(0, image.stat().st_size): plan.filesystem}
        else:
            subprocess.run(["sfdisk", "-q", image], input=_DISK, text=True, check=True, timeout=20)
            kinds = ("ntfs", "ext4")
            self._parts = {(at, _PART_BYTES): kind for at, kind in zip(_PART_OFFSETS, kinds, strict=True)}
        for part, kind in self._parts.items():
            device = self._attached(image, part)
            run(*_MKFS[kind], device)
            self._ground.drop_loop(device)
        return image

    def _attached(self, path: Path, part: tuple[int, int], *options: str) -> Path:
        offset, length = part
        return self._ground.loop(path, f"--offset={offset}", f"--sizelimit={length}", *options)

    @contextlib.contextmanager
    def _mounted(self, path: Path, part: tuple[int, int], kind: str, *options: str) -> Iterator[Path]:
        device = self._attached(path, part, *options)
        try:
            point = self._ground.mount(device, *_MOUNT.get(kind, ()), *(("-o", "ro") if options else ()))
            try:
                yield point
            finally:
                run("umount", point)
        finally:
            self._ground.drop_loop(device)

    def _end_views(self) -> None:
        """Before the disk under them is gone."""
        if self._views.is_running:
            self._views.umount()
        self._views.drop_logs()

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def run(self) -> None:
        for night in range(self._plan.nights):
            self._live_on()
            event = self._draw.choice(self._plan.events)
            self._say(f"    {event}")
            getattr(self, f"_{event}")()
            self._back_up(night)
        self._check_all()

    # --- days ------------------------------------------------------------------------------------------------

    def _live_on(self, image: Path | None = None) -> None:
        """A day of the live view, or of an image that is not mounted."""
        path = image or self._views.live_file
        for part, kind in self._parts.items():
            with self._mounted(path, part, kind) as point:
                for _ in range(self._draw.randrange(2, 10)):
                    self._act(point)
                if kind in _DEFRAGMENT and self._draw.random() < 0.2:
                    subprocess.run([*_DEFRAGMENT[kind], point], capture_output=True, check=False, timeout=60)
                if self._draw.random() < 0.2:
                    trim(point)
                self._files[kind] = files_in(point)
            if kind == "ntfs":
                # Its driver leaves that to whoever takes the disk away.
                run("sync", path)

    def _thin_out(self) -> None:
        """Some files go, and what they had is discarded."""
        for part, kind in self._parts.items():
            with self._mounted(self._views.live_file, part, kind) as point:
                files = sorted(path for path in point.iterdir() if path.is_file())
                for path in self._draw.sample(files, len(files) // 3):
                    path.unlink()
                # Until then a log may bring them back.
                run("sync", "-f", point)
                trim(point)
                self._files[kind] = files_in(point)
            if kind == "ntfs":
                run("sync", self._views.live_file)

    def _act(self, point: Path) -> Path:
        """Something is done to a file, which is returned."""
        files = sorted(path for path in point.iterdir() if path.is_file())
        kind, length = self._draw.random(), self._draw.choice((10, 5000, 90_000, 700_000))
        if kind < 0.3 and len(files) > 6:
            path = self._draw.choice(files)
            path.unlink()
        elif kind < 0.7 or not files:
            path = point / f"file{self._draw.randrange(60)}"
            path.write_bytes(self._draw.randbytes(length))
        elif kind < 0.75:
            path = self._draw.choice(files)
            os.truncate(path, path.stat().st_size + length)
        else:
            path = self._draw.choice(files)
            with path.open("r+b") as file:
                file.seek(self._draw.randrange(path.stat().st_size + 1))
                file.write(self._draw.randbytes(length))
                if kind > 0.95:
                    # Not every driver can.
                    subprocess.run(["fallocate", "-p", "-l", "8192", path], capture_output=True, check=False)
                file.truncate(self._draw.randrange(file.tell() + 1) if kind > 0.9 else None)
        return path

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
        self._live_on(self._views.image)
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
        """A backup that is killed before a step of its own. What it is of is kept, by a snapshot of before it, as it
        releases its own: it may be whole all the same."""
        self._begun = self._snapshot("begun")
        ok("delete", self._views.live, "begun")
        self._dying("backup", "--cut", self._views.live, self._backups)

    def _dying(self, *words: str | Path) -> None:
        command = [sys.executable, str(_DYING), str(self._draw.randrange(_STEPS)), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, timeout=120, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr

    def _resume(self) -> None:
        """What can be gone on with is; of what was killed before anything was noted it is said that it cannot."""
        self._die()
        done = snapfs("backup", self._views.live, self._backups, "--resume")
        assert done.returncode in (0, 1), done.stderr

    def _cut(self) -> None:
        ok("snapshot", self._views.live)
        self._live_on()

    def _list(self) -> None:
        (self._backups / "chain.json").unlink(missing_ok=True)

    def _overflow(self) -> None:
        for words in (("limit", self._views.live, "64K"), ("snapshot", self._views.live)):
            snapfs(*words)
        self._live_on()
        ok("limit", self._views.live, "1G")

    def _prune(self) -> None:
        """Sometimes killed before a step of its own; the next one goes on."""
        if not self._nights:
            return
        keep = ("--keep-last", str(self._draw.randrange(2, 6)))
        if self._draw.random() < 0.5:
            self._dying("prune", self._backups, *keep)
        if self._draw.random() < 0.7:
            ok("prune", self._backups, *keep)
        self._forget_pruned()

    def _forget_pruned(self) -> None:
        listed = self._listed()
        assert not self._nights or max(self._nights) in listed, "the newest backup is gone"
        self._nights = {name: night for name, night in self._nights.items() if name in listed}

    def _power(self) -> None:
        """Everybody is killed, and what the disk has not got is gone."""
        moment = self._draw.choice(("day", "backup", "prune"))
        promised: dict[tuple[int, int], dict[str, str]] = {}
        if moment == "backup":
            self._die()
        elif moment == "prune" and self._nights:
            self._dying("prune", self._backups, "--keep-last", str(self._draw.randrange(2, 6)))
        self._views.drop_logs()
        with contextlib.ExitStack() as stack:
            if moment == "day":
                promised = {
                    part: self._half_a_day(part, kind, stack) for part, kind in self._parts.items() if kind != "ntfs"
                }
            self._views.kill()
            self._disk.lose_power()
        for view in (self._views.snap, self._views.live):
            unmount(view, MNT_DETACH)
        self._views.program = self._disk.boot()
        if moment == "prune":
            self._forget_pruned()
        assert self._listed() >= self._nights.keys(), "a backup is gone with the power"
        self._views.mount()
        for part, files in promised.items():
            with self._mounted(self._views.live_file, part, self._parts[part]) as point:
                assert files.items() <= files_in(point).items(), "what was synced is gone with the power"
        self._live_on()

    def _half_a_day(self, part: tuple[int, int], kind: str, stack: contextlib.ExitStack) -> dict[str, str]:
        """Files that were synced and not touched since, of a filesystem that nobody unmounts before the end."""
        device = self._attached(self._views.live_file, part)
        stack.callback(self._ground.drop_loop, device)
        point = self._ground.mount(device, name=f"fs-{kind}")
        stack.callback(unmount, point, MNT_DETACH)
        for _ in range(self._draw.randrange(1, 6)):
            self._act(point)
        run("sync", "-f", point)
        synced = files_in(point)
        for _ in range(self._draw.randrange(6)):
            synced.pop(self._act(point).name, None)
        return synced

    def _swap(self) -> None:
        """The partitions change places."""
        if len(self._parts) < 2:
            return
        with self._views.live_file.open("r+b") as file:
            content = []
            for offset, length in self._parts:
                file.seek(offset)
                content.append(file.read(length))
            for (offset, _), data in zip(self._parts, reversed(content), strict=True):
                file.seek(offset)
                file.write(data)
        self._parts = dict(zip(self._parts, reversed(self._parts.values()), strict=True))

    # --- nights ----------------------------------------------------------------------------------------------

    def _back_up(self, night: int) -> None:
        name, live = f"night{night}", self._views.live
        taken = self._snapshot(name)
        made = json.loads(self._backed_up("backup", live, self._backups, "--snapshot", name, "--json"))
        kind = "full" if made["kind"] == "full" else "compared" if made["why"] else "read"
        self.counts[kind] += 1
        self._nights[Path(made["backup"]).stem] = taken
        self._adopt_begun()
        ok("verify", self._backups, "--against", live)
        ok("delete", live, name)
        self._say(f"    {name}: {kind}, {made['read_bytes']} bytes read; {made['why']}")

    def _backed_up(self, *words: str | Path) -> str:
        """What a backup says; before it, or meanwhile, files of the live view may go."""
        when = self._draw.choice(("never", "before", "meanwhile"))
        if when == "before":
            self._thin_out()
        with ThreadPoolExecutor(1) as pool:
            told = pool.submit(ok, *words)
            if when == "meanwhile":
                self._thin_out()
            return told.result()

    def _snapshot(self, name: str) -> Night:
        """One is taken, and a copy of it."""
        ok("snapshot", self._views.live, "--name", name)
        # Before, what is free is shown as well.
        wait_until(lambda: self._views.status()["snapshot"]["map"] != "computing", 60, "the map")
        kept = self._ground.path / name
        run("cp", "--sparse=always", self._views.snap / ".snapshots" / name / self._views.image.name, kept)
        return Night(kept, dict(self._parts), {kind: dict(files) for kind, files in self._files.items()})

    def _adopt_begun(self) -> None:
        """What was killed is a backup by now, or nothing is left of it."""
        more = self._listed() - self._nights.keys()
        assert len(more) <= (self._begun is not None), more
        for name in more:
            assert self._begun is not None
            self._nights[name] = replace(self._begun, kept=self._begun.kept.rename(self._ground.path / name))
        self._begun = None
        missing = self._nights.keys() - self._listed()
        assert not missing, f"{missing} are not listed"

    def _listed(self) -> set[str]:
        done = snapfs("backups", self._backups, "--json")
        return {one["name"] for one in json.loads(done.stdout)["backups"]} if done.returncode == 0 else set()

    def _check_all(self) -> None:
        restored = self._ground.path / "restored.img"
        for name, night in self._nights.items():
            ok("restore", self._backups, restored, "--at", name, "--force")
            run("cmp", restored, night.kept)
            backup = self._backups / f"{name}.qcow2"
            run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", backup, night.kept)
            run("qemu-img", "check", "-q", backup)
            for part, kind in night.parts.items():
                device = self._attached(restored, part, "--read-only")
                run(*_CHECK[kind], device)
                self._ground.drop_loop(device)
                with self._mounted(restored, part, kind, "--read-only") as point:
                    assert files_in(point) == night.files[kind], f"{name} has other files"
        ok("verify", self._backups, "--all")
        # What a killed one has left.
        ok("prune", self._backups, "--keep-last", "1000")
        left = [name for name in os.listdir(self._backups) if ".partial" in name]
        assert not left, f"{left} are left"
        assert len(self._views.status()["checkpoints"]) == 1


def ok(*words: str | Path) -> str:
    """What a command says that must succeed."""
    done = snapfs(*words)
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}"
    return done.stdout


def trim(point: Path) -> None:
    """Not every driver can, and not everything below passes it on."""
    subprocess.run(["fstrim", point], capture_output=True, check=False, timeout=60)


def files_in(point: Path) -> dict[str, str]:
    """The files of a filesystem by their hashes."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in point.iterdir() if path.is_file()}


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
