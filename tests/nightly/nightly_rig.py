"""A directory of backups as users make and read it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import imager_rig
from imager_rig import MIB, Bench, Done, run

CELL = 64 << 10
ENDS = (".qcow2", ".cells", ".json")
ROOT = Path(__file__).parents[2]
# They leave no process behind.
LOADED = ("backup", "backups", "prune", "restore", "verify")

__all__ = ["CELL", "MIB", "Done", "Nights", "run", "snapfs"]


@cache
def _loaded() -> subprocess.Popen[str]:
    """It ends with this process, whose end of the pipe is then closed."""
    program = Path(__file__).with_name("loaded_snapfs.py")
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", f"tests.nightly.{program.stem}"], cwd=ROOT, stdin=pipe, stdout=pipe, text=True
    )


def snapfs(*words: str | Path, die_before: int | None = None, **keywords: Any) -> Done:
    """The command, of a process that has loaded it; `die_before` is the step of dying_backup.py."""
    if keywords or words[0] not in LOADED:
        assert die_before is None, "it would not be killed"
        return imager_rig.snapfs(*words, **keywords)
    asked = {
        "words": [str(word) for word in words],
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "step": die_before,
    }
    loaded = _loaded()
    assert loaded.stdin is not None
    assert loaded.stdout is not None
    print(json.dumps(asked), file=loaded.stdin, flush=True)
    done = Done(**json.loads(loaded.stdout.readline()))
    assert "Traceback" not in done.err, done.err
    return done


class Nights(Bench):
    """A bench with a directory of backups."""

    @property
    def backups(self) -> Path:
        return self.path / "backups"

    def back_up(self, *words: str | Path) -> dict[str, Any]:
        """One more backup of the unmounted image; what is said of it."""
        return self.back_up_of(self.image, *words)

    def back_up_of(self, source: Path, *words: str | Path) -> dict[str, Any]:
        done = snapfs("backup", source, self.backups, "--json", *words).ok()
        made: dict[str, Any] = json.loads(done.out)
        return made

    def change(self, *cells: int) -> bytes:
        """Other bytes in these cells of the unmounted image; all of it as it is then."""
        with self.image.open("r+b") as file:
            for cell in cells:
                file.seek(cell * CELL + 100)
                file.write(os.urandom(500))
        return self.image.read_bytes()

    def listed(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(snapfs("backups", self.backups, "--json").ok().out)["backups"]
        return found

    def restored(self, *words: str | Path) -> bytes:
        """The image that a restore makes."""
        return self.restored_with(0, *words)

    def restored_with(self, code: int, *words: str | Path) -> bytes:
        """The same, of a restore that ends with this code."""
        image = self.path / "restored.img"
        image.unlink(missing_ok=True)
        done = snapfs("restore", self.backups, image, *words)
        assert done.code == code, done.err
        return image.read_bytes()

    def facts(self, number: int) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.backups / f"{self.listed()[number]['name']}.json").read_text())
        return data

    def file(self, number: int, end: str) -> Path:
        return self.backups / (self.listed()[number]["name"] + end)

    def _names(self) -> list[str]:
        return [one["name"] for one in self.listed()]

    def debris(self) -> set[str]:
        """What is in the directory beside the list and whole backups."""
        names = {name + end for name in self._names() for end in ENDS}
        merges = {name: json.loads((self.backups / f"{name}.json").read_text())["merges"] for name in self._names()}
        names |= {f"{name}.{count}.cells" for name, count in merges.items() if count}
        names -= {f"{name}.cells" for name, count in merges.items() if count}
        return {path.name for path in self.backups.iterdir()} - names - {"chain.json"}


@contextmanager
def new_nights() -> Iterator[Nights]:
    """4 MiB and a bit of random image, which no cell and no sector divides."""
    nights = Nights(Path(tempfile.mkdtemp(prefix="snapfs-nightly-", dir="/var/tmp")).resolve())
    try:
        nights.image.write_bytes(os.urandom(4 * MIB + 700))
        for directory in (nights.live, nights.snap, nights.backups):
            directory.mkdir()
        yield nights
    finally:
        nights.clean_up()


def with_other_bytes(path: Path, offset: int, length: int = 16) -> None:
    """Flip what is there."""
    with path.open("r+b") as file:
        file.seek(offset)
        data = file.read(length)
        file.seek(offset)
        file.write(bytes(byte ^ 0xFF for byte in data))
