"""The campaign of nights: a filesystem lives on, and each night one more backup goes into a directory of them.

By day files are made, changed, cut short, punched, defragmented and deleted. Between two nights anything may happen
that must not matter: the image is unmounted, its servers are killed, a backup or a prune is killed before a step of
its own, another cut is taken, the list of the backups is lost, the side buffer overflows, on a disk with partitions
these change places. Each night's snapshot is kept as a file, compared with the
backup cell by cell while it is there, and at the end every night is restored and compared byte by byte, and read by
QEMU's tools and the checker of the filesystem.

    scripts/torture nights --filesystem xfs --nights 30 --seed S
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mounted
from cut_rig import MIB, MKFS, CutGround
from mounted import new_ground, run, snapfs

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
_EVENTS = ("nothing", "nothing", "unmount", "kill", "die", "resume", "cut", "list", "overflow", "prune", "swap")
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


class Campaign:
    """Use it as `with Campaign(plan) as one: one.run()`. AssertionError: something is not as it must be."""

    def __init__(self, plan: Plan, say: Callable[[str], None] = lambda line: None) -> None:
        self._plan, self._say = plan, say
        self._draw = random.Random(plan.seed)
        self._stack = contextlib.ExitStack()
        self._kept: dict[str, Path] = {}
        self._kinds: dict[Path, dict[tuple[int, int], str]] = {}
        self.counts = {"full": 0, "compared": 0, "read": 0}

    def __enter__(self) -> Campaign:
        plan = self._plan
        with contextlib.ExitStack() as stack:
            self._ground = stack.enter_context(new_ground(CutGround, "snapfs-nights-"))
            image = self._made()
            self._backups = self._ground.path / "backups"
            self._backups.mkdir()
            options = (f"--protect={plan.protect}", f"--durability={plan.durability}")
            store = ("--store", self._ground.path / "store")
            self._views = self._ground.mounted(image, *options, *store)
            # A killed server, and a side buffer that is full on purpose.
            self._views.expect_log(".")
            self._stack = stack.pop_all()
        return self

    def _made(self) -> Path:
        """The image; `_parts` are its filesystems by offset and size."""
        plan = self._plan
        image = self._ground.image(IMAGE_MIB[plan.filesystem] * MIB)
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

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def run(self) -> None:
        for night in range(self._plan.nights):
            self._live_on()
            event = self._draw.choice(_EVENTS)
            getattr(self, f"_{event}")()
            self._back_up(night, event)
        self._check_all()

    # --- days ------------------------------------------------------------------------------------------------

    def _live_on(self) -> None:
        for part, kind in self._parts.items():
            device = self._attached(self._views.live_file, part)
            point = self._ground.mount(device, *(("-t", "ntfs-3g") if kind == "ntfs" else ()))
            try:
                for _ in range(self._draw.randrange(2, 10)):
                    self._act(point)
                if kind in _DEFRAGMENT and self._draw.random() < 0.2:
                    subprocess.run([*_DEFRAGMENT[kind], point], capture_output=True, check=False, timeout=60)
            finally:
                run("umount", point)
                self._ground.drop_loop(device)

    def _act(self, point: Path) -> None:
        files = sorted(path for path in point.iterdir() if path.is_file())
        kind, length = self._draw.random(), self._draw.choice((10, 5000, 90_000, 700_000))
        if kind < 0.3 and len(files) > 6:
            self._draw.choice(files).unlink()
        elif kind < 0.7 or not files:
            (point / f"file{self._draw.randrange(60)}").write_bytes(self._draw.randbytes(length))
        else:
            path = self._draw.choice(files)
            with path.open("r+b") as file:
                file.seek(self._draw.randrange(path.stat().st_size + 1))
                file.write(self._draw.randbytes(length))
                if kind > 0.95:
                    # Not every driver can.
                    subprocess.run(["fallocate", "-p", "-l", "8192", path], capture_output=True, check=False)
                file.truncate(self._draw.randrange(file.tell() + 1) if kind > 0.9 else None)

    # --- what must not matter --------------------------------------------------------------------------------

    def _nothing(self) -> None:
        pass

    def _unmount(self) -> None:
        self._views.umount()
        self._views.mount()

    def _kill(self) -> None:
        self._views.kill()
        self._views.mount()

    def _die(self) -> None:
        step = str(self._draw.randrange(_STEPS))
        words = [sys.executable, str(_DYING), step, "backup", "--cut", str(self._views.live), str(self._backups)]
        done = subprocess.run(words, capture_output=True, text=True, cwd=_ROOT, timeout=120, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr

    def _resume(self) -> None:
        """What can be gone on with is; of what was killed before anything was noted it is said that it cannot."""
        self._die()
        done = snapfs("backup", self._views.live, self._backups, "--resume")
        assert done.returncode in (0, 1), done.stderr

    def _cut(self) -> None:
        assert snapfs("snapshot", self._views.live).returncode == 0
        self._live_on()

    def _list(self) -> None:
        (self._backups / "chain.json").unlink(missing_ok=True)

    def _overflow(self) -> None:
        for words in (("limit", self._views.live, "64K"), ("snapshot", self._views.live)):
            snapfs(*words)
        self._live_on()
        assert snapfs("limit", self._views.live, "1G").returncode == 0

    def _prune(self) -> None:
        """Sometimes killed before a step of its own; the next one goes on."""
        if not self._kept:
            return
        keep = ("--keep-last", str(self._draw.randrange(2, 6)))
        words = [sys.executable, str(_DYING), str(self._draw.randrange(_STEPS)), "prune", str(self._backups), *keep]
        if self._draw.random() < 0.5:
            done = subprocess.run(words, capture_output=True, text=True, cwd=_ROOT, timeout=120, check=False)
            assert done.returncode in (0, -signal.SIGKILL), done.stderr
        if self._draw.random() < 0.7:
            told = snapfs("prune", self._backups, *keep)
            assert told.returncode == 0, told.stderr
        listed = json.loads(snapfs("backups", self._backups, "--json").stdout)["backups"]
        self._kept = {name: path for name, path in self._kept.items() if any(one["name"] == name for one in listed)}

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

    def _back_up(self, night: int, event: str) -> None:
        name, live = f"night{night}", self._views.live
        done = snapfs("snapshot", live, "--name", name)
        assert done.returncode == 0, done.stderr
        done = snapfs("backup", live, self._backups, "--snapshot", name, "--json")
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        kind = "full" if made["kind"] == "full" else "compared" if made["why"] else "read"
        self.counts[kind] += 1
        kept = self._ground.path / name
        run("cp", "--sparse=always", self._views.snap / ".snapshots" / name / self._views.image.name, kept)
        self._kept[Path(made["backup"]).stem] = kept
        self._kinds[kept] = dict(self._parts)
        done = snapfs("verify", self._backups, "--against", live)
        assert done.returncode == 0, done.stderr
        assert snapfs("delete", live, name).returncode == 0
        self._say(f"    {name} after {event}: {kind}, {made['read_bytes']} bytes read; {made['why']}")

    def _check_all(self) -> None:
        restored = self._ground.path / "restored.img"
        for name, kept in self._kept.items():
            done = snapfs("restore", self._backups, restored, "--at", name, "--force")
            assert done.returncode == 0, done.stderr
            run("cmp", restored, kept)
            backup = self._backups / f"{name}.qcow2"
            run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", backup, kept)
            run("qemu-img", "check", "-q", backup)
            for part, kind in self._kinds[kept].items():
                device = self._attached(restored, part, "--read-only")
                run(*_CHECK[kind], device)
                self._ground.drop_loop(device)
        done = snapfs("verify", self._backups, "--all")
        assert done.returncode == 0, done.stderr
        left = [name for name in os.listdir(self._backups) if ".partial" in name]
        assert left == []
        assert len(self._views.status()["checkpoints"]) == 1


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
    print(f"seed {plan.seed}: {plan}", flush=True)
    campaign = Campaign(plan, lambda line: print(line, flush=True))
    try:
        with campaign as one:
            one.run()
    except (AssertionError, OSError, subprocess.TimeoutExpired) as fault:
        print(f"seed {plan.seed}: FAULT: {fault}\n    {campaign.counts}", flush=True)
        return 1
    print(f"seed {plan.seed}: right, {time.monotonic() - started:.0f} s; {campaign.counts}")
    return 0
