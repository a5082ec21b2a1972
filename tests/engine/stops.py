"""What a kill or a power loss would leave at every change of anything (`changes`).

`recording` copies image and store before each change: what a killed process had stored is in its files, so the copy
is what the next process would find. With `power` the copy is what the disk would hold: `power_loss.Disk`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from changes import Patches, watch_all
from engine_rig import Rig
from power_loss import Disk


@dataclass
class Progress:
    """How far the work has come: steps done, steps whose writes were synced, whether the store was open."""

    written: int = 0
    synced: int = 0
    opened: bool = False


@dataclass(frozen=True)
class Moment:
    """The copy made before one change."""

    number: int
    directory: Path
    progress: Progress


class Recorder:
    """Makes a copy before each change while it is armed."""

    def __init__(self, rig: Rig, target: Path, disk: Disk | None) -> None:
        self._source, self._target, self._disk = rig.image_path.parent, target, disk
        self.progress = Progress()
        self.moments: list[Moment] = []
        self._armed = False

    def arm(self) -> None:
        self._armed = True

    def change(self) -> None:
        if not self._armed:
            return
        self._armed = False
        number = len(self.moments) + 1
        directory = self._target / f"moment{number}"
        if self._disk:
            self._disk.copy_to(directory)
            if number % 7 == 0:
                self._disk.look()
        else:
            _copy(self._source, directory)
        progress = Progress(self.progress.written, self.progress.synced, self.progress.opened)
        self.moments.append(Moment(number, directory, progress))
        self._armed = True


def _copy(source: Path, target: Path) -> None:
    target.mkdir()
    for entry in os.scandir(source):
        if entry.is_dir():
            _copy(Path(entry.path), target / entry.name)
        else:
            (target / entry.name).write_bytes(Path(entry.path).read_bytes())
            info = entry.stat()
            os.utime(target / entry.name, ns=(info.st_atime_ns, info.st_mtime_ns))


@contextmanager
def recording(rig: Rig, target: Path, *, power: bool = False) -> Iterator[Recorder]:
    """Within this, every change of this process is one of the recorder's moments, once it is armed."""
    patches = Patches()
    disk = Disk(rig, random.Random(1), patches) if power else None
    recorder = Recorder(rig, target, disk)
    try:
        watch_all(patches, recorder.change)
        yield recorder
        recorder.change()
    finally:
        patches.undo()
