"""The names of results that are not finished: every file beside a DEST that is to go again.

    DEST.partial           what is written, until it is whole
    DEST.partial.journal   what of it is durable, while --resume could go on with it
    MANIFEST.journal       the same of a block device, which is written where it is
    DEST.update            what a backup that is brought up to date where it is may hold otherwise than its manifest
                           says; of a block device MANIFEST.update

(Directories that last no longer than their process are `snapfs.system.scratch`'s.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PARTIAL: Final = ".partial"
_JOURNAL: Final = ".journal"
_UPDATE: Final = ".update"


def partial_path(path: Path) -> Path:
    """The name of `path` while it is unfinished."""
    return _beside(path, _PARTIAL)


def journal_path(path: Path) -> Path:
    """The journal of what is written under the name `path`."""
    return _beside(path, _JOURNAL)


def update_path(path: Path) -> Path:
    """The note of what is brought up to date under the name `path`."""
    return _beside(path, _UPDATE)


def temporary_paths(path: Path) -> tuple[Path, ...]:
    """All that may be beside `path` meanwhile."""
    partial, update = partial_path(path), update_path(path)
    return partial, journal_path(partial), journal_path(path), update, partial_path(update)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
