"""A directory of backups as the campaign of nights makes it, and what has to be in it."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cut_rig import CutGround
from mounted import Mounted, run, snapfs, wait_until
from nights_filesystems import Filesystems, files_in

_DYING = Path(__file__).parents[1] / "nightly" / "dying_backup.py"
_ROOT = Path(__file__).parents[2]
_STEPS = 60
_CHECK = {
    "ext4": ("e2fsck", "-fn"),
    "xfs": ("xfs_repair", "-n", "-f"),
    "btrfs": ("btrfs", "check", "--readonly"),
    "ntfs": ("ntfsfix", "--no-action"),
}


@dataclass(frozen=True)
class Night:
    """What a backup has to be: a copy of its snapshot, and what was where, with the files of each filesystem."""

    kept: Path
    parts: dict[tuple[int, int], str]
    files: dict[str, dict[str, str]]


class Backups:
    """`path` is the directory. AssertionError: a backup is not there, or is not what its snapshot was."""

    def __init__(
        self,
        path: Path,
        ground: CutGround,
        views: Mounted,
        filesystems: Filesystems,
        draw: random.Random,
    ) -> None:
        self.path, self._ground, self._views, self._filesystems = path, ground, views, filesystems
        self._draw = draw
        self._nights: dict[str, Night] = {}
        # What a backup that was killed was of: it may turn out to be whole.
        self._begun: Night | None = None

    def begin(self) -> None:
        """A backup that is killed before a step of its own. What it is of is kept, by a snapshot of before it, as it
        releases its own: it may be whole all the same."""
        self._begun = self._snapshot("begun")
        ok("delete", self._views.live, "begun")
        self._dying("backup", "--cut", self._views.live, self.path)

    def begin_pruning(self) -> None:
        """Killed before a step of its own; of no backups there is nothing to prune."""
        if self._nights:
            self._dying("prune", self.path, *self._keep())

    def prune(self) -> None:
        """Sometimes killed before a step of its own; the next one goes on."""
        if not self._nights:
            return
        keep = self._keep()
        if self._draw.random() < 0.5:
            self._dying("prune", self.path, *keep)
        if self._draw.random() < 0.7:
            ok("prune", self.path, *keep)
        self.forget_pruned()

    def _keep(self) -> tuple[str, str]:
        return "--keep-last", str(self._draw.randrange(2, 6))

    def lose_list(self) -> None:
        (self.path / "chain.json").unlink(missing_ok=True)

    def check_listed(self) -> None:
        assert self._listed() >= self._nights.keys(), "a backup is gone with the power"

    def _dying(self, *words: str | Path) -> None:
        command = [sys.executable, str(_DYING), str(self._draw.randrange(_STEPS)), *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=_ROOT, timeout=120, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr

    def forget_pruned(self) -> None:
        listed = self._listed()
        assert not self._nights or max(self._nights) in listed, "the newest backup is gone"
        self._nights = {name: night for name, night in self._nights.items() if name in listed}

    def back_up(self, name: str) -> dict[str, Any]:
        """One more, of a snapshot with this name; what the command says of it."""
        live = self._views.live
        taken = self._snapshot(name)
        made: dict[str, Any] = json.loads(self._backed_up("backup", live, self.path, "--snapshot", name, "--json"))
        self._nights[Path(made["backup"]).stem] = taken
        self._adopt_begun()
        ok("verify", self.path, "--against", live)
        ok("delete", live, name)
        return made

    def _backed_up(self, *words: str | Path) -> str:
        """What a backup says; before it, or meanwhile, files of the live view may go."""
        when = self._draw.choice(("never", "before", "meanwhile"))
        if when == "before":
            self._filesystems.thin_out(self._views.live_file)
        with ThreadPoolExecutor(1) as pool:
            told = pool.submit(ok, *words)
            if when == "meanwhile":
                self._filesystems.thin_out(self._views.live_file)
            return told.result()

    def _snapshot(self, name: str) -> Night:
        """One is taken, and a copy of it."""
        ok("snapshot", self._views.live, "--name", name)
        # Before, what is free is shown as well.
        wait_until(lambda: self._views.status()["snapshot"]["map"] != "computing", 60, "the map")
        kept = self._ground.path / name
        run("cp", "--sparse=always", self._views.snap / ".snapshots" / name / self._views.image.name, kept)
        return Night(
            kept,
            dict(self._filesystems.parts),
            {kind: dict(files) for kind, files in self._filesystems.files.items()},
        )

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
        done = snapfs("backups", self.path, "--json")
        return {one["name"] for one in json.loads(done.stdout)["backups"]} if done.returncode == 0 else set()

    def check_all(self) -> None:
        restored = self._ground.path / "restored.img"
        for name, night in self._nights.items():
            ok("restore", self.path, restored, "--at", name, "--force")
            run("cmp", restored, night.kept)
            backup = self.path / f"{name}.qcow2"
            run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", backup, night.kept)
            run("qemu-img", "check", "-q", backup)
            for part, kind in night.parts.items():
                device = self._filesystems.attached(restored, part, "--read-only")
                run(*_CHECK[kind], device)
                self._ground.drop_loop(device)
                with self._filesystems.mounted(restored, part, kind, "--read-only") as point:
                    assert files_in(point) == night.files[kind], f"{name} has other files"
        ok("verify", self.path, "--all")
        # What a killed one has left.
        ok("prune", self.path, "--keep-last", "1000")
        left = [name for name in os.listdir(self.path) if ".partial" in name]
        assert not left, f"{left} are left"
        assert len(self._views.status()["checkpoints"]) == 1


def ok(*words: str | Path) -> str:
    """What a command says that must succeed."""
    done = snapfs(*words)
    assert done.returncode == 0, f"{' '.join(map(str, words))}: {done.stderr}"
    return done.stdout
