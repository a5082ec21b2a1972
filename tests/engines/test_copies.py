"""Unmodified restic, borg and rclone over the chunks: they read what has changed alone, and give all of it back."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from chunk_rig import MIB, folder, joined, write
from ground import Ground
from mounted import Mounted, run, snapfs

IMAGE_BYTES = 40 * MIB
CHUNK_COUNT = 10


@dataclass(frozen=True)
class Nights:
    """An image, and where a program of others has its repository and what it knows."""

    ground: Ground
    instance: Mounted

    @property
    def environment(self) -> dict[str, str]:
        home = str(self.ground.path / "home")
        return {
            **os.environ,
            "HOME": home,
            "XDG_CACHE_HOME": f"{home}/cache",
            "RESTIC_PASSWORD": "secret",
            "BORG_BASE_DIR": f"{home}/borg",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }

    @property
    def source(self) -> Path:
        return folder(self.instance)

    @property
    def repository(self) -> Path:
        return self.ground.path / "repository"

    def run(self, *words: str | Path, cwd: Path | None = None) -> str:
        return run(*words, env=self.environment, cwd=cwd or self.ground.path)

    def said_by(self, *words: str | Path) -> str:
        """On its standard error."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=True, timeout=60)
        return done.stderr

    def check_restored(self, chunks: Path) -> None:
        """They are the snapshot, and become its image again."""
        content = self.instance.snap_file.read_bytes()
        assert joined(chunks) == content
        done = snapfs("join", chunks, self.ground.path / "restored", "--force")
        assert done.returncode == 0, done.stderr
        assert (self.ground.path / "restored").read_bytes() == content


@pytest.fixture
def nights(ground: Ground) -> Nights:
    image = ground.image(os.urandom(IMAGE_BYTES - 5000))
    (ground.path / "home").mkdir()
    return Nights(ground, ground.mounted(image, "--store", ground.path / "store"))


def change(nights: Nights) -> None:
    """Two of the chunks, and take the next snapshot."""
    for at in (5 * MIB, 21 * MIB):
        write(nights.instance, at, os.urandom(8192))
    nights.instance.cut()


def test_restic(nights: Nights) -> None:
    nights.run("restic", "-r", nights.repository, "init")

    def backup() -> tuple[int, int, int]:
        lines = nights.run("restic", "-r", nights.repository, "--json", "backup", nights.source).splitlines()
        summary = json.loads(lines[-1])
        return summary["files_new"], summary["files_changed"], summary["files_unmodified"]

    assert backup() == (CHUNK_COUNT, 0, 0)
    nights.instance.cut()
    assert backup() == (0, 0, CHUNK_COUNT)
    change(nights)
    assert backup() == (0, 2, CHUNK_COUNT - 2)
    nights.instance.umount()
    nights.instance.mount()
    assert backup() == (0, 0, CHUNK_COUNT)
    back = nights.ground.path / "back"
    nights.run("restic", "-r", nights.repository, "restore", "latest", "--target", back)
    nights.check_restored(back / nights.source.relative_to("/"))


def test_borg(nights: Nights) -> None:
    """It distrusts the latest time that it sees: of that is one chunk at most."""
    nights.run("borg", "init", "-e", "none", nights.repository)

    def create(name: str) -> set[str]:
        """The names of the chunks that it has read: added, modified, or an error."""
        words = "borg", "create", "--list", "--filter", "AME", f"{nights.repository}::{name}", nights.source
        lines = nights.said_by(*words).splitlines()
        return {Path(line[2:]).name for line in lines if line[:2] in ("A ", "M ", "E ")}

    assert len(create("first")) == CHUNK_COUNT
    nights.instance.cut()
    assert create("second") <= {"00M"}
    change(nights)
    assert {"04M", "20M"} <= create("third") <= {"00M", "04M", "20M"}
    nights.instance.cut()
    assert create("fourth") <= {"04M"}
    back = nights.ground.path / "back"
    back.mkdir()
    nights.run("borg", "extract", f"{nights.repository}::fourth", cwd=back)
    nights.check_restored(back / nights.source.relative_to("/"))


def test_rclone(nights: Nights) -> None:
    def sync() -> int:
        words = "rclone", "sync", "--use-json-log", "-v", "--stats", "0", nights.source, nights.repository
        return nights.said_by(*words).count('"msg":"Copied')

    assert sync() == CHUNK_COUNT
    nights.instance.cut()
    assert sync() == 0
    change(nights)
    assert sync() == 2
    nights.check_restored(nights.repository)
