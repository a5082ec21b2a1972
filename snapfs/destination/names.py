"""The names of results that are not finished: every file beside a DEST that is to go again.

    DEST.partial           what is written, until it is whole
    DEST.partial.journal   what of it is durable, while --resume could go on with it
    MANIFEST.journal       the same of a block device, which is written where it is

(Directories that last no longer than their process are `snapfs.system.scratch`'s.)
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_PARTIAL: Final = ".partial"
_JOURNAL: Final = ".journal"


def partial_path(path: Path) -> Path:
    """The name of `path` while it is unfinished."""
    return _beside(path, _PARTIAL)


def journal_path(path: Path) -> Path:
    """The journal of what is written under the name `path`."""
    return _beside(path, _JOURNAL)


def temporary_paths(path: Path) -> tuple[Path, ...]:
    """All that may be beside `path` meanwhile."""
    partial = partial_path(path)
    return partial, journal_path(partial), journal_path(path)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)
