"""Snapshots that were lost while their store could not be told: remembered elsewhere, until the machine restarts.

A store's disk that fails and comes back shows what was last written to it, a snapshot that seems whole. After a
restart nobody takes it for that (`cow.mount.recovery`); before, an empty file of its name says that it is not, in
/run or in the user's own part of it. Where there is no such place, what the image's modification time tells has to
do.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from snapfs.stamps import id_text

_OF_ROOT: Final = Path("/run/snapfs")


def note_lost(snapshot_id: bytes) -> None:
    """Nothing of this snapshot is to be believed any more, whatever its store says; best effort."""
    directory = _directory()
    if directory is None:
        return
    with contextlib.suppress(OSError):
        directory.mkdir(0o700, exist_ok=True)
        _path(directory, snapshot_id).touch(0o600)


def is_noted_lost(snapshot_id: bytes) -> bool:
    directory = _directory()
    return directory is not None and _path(directory, snapshot_id).exists()


def _path(directory: Path, snapshot_id: bytes) -> Path:
    return directory / id_text(snapshot_id)


def _directory() -> Path | None:
    if os.geteuid() == 0:
        return _OF_ROOT
    own = os.environ.get("XDG_RUNTIME_DIR")
    return Path(own) / "snapfs" if own else None
