"""A directory as the destination: each backup has a name of its own there, by the time of its cut.

    disk-2026-01-31T120000Z.img, disk-2026-01-31T120000Z_02.img, ...

The names of one image sort by time, also those of one second.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from snapfs.destination.names import partial_path
from snapfs.errors import SnapfsError

_IMAGE_SUFFIXES: Final = (".img", ".raw")


def names(directory: Path, image_name: str, taken_at: str, suffix: str) -> Iterator[Path]:
    """Names for a backup of a cut of `taken_at` ("2026-01-31T12:00:00Z"), from the first on."""
    stem = next((image_name.removesuffix(end) for end in _IMAGE_SUFFIXES if image_name.endswith(end)), image_name)
    base = f"{stem or image_name}-{taken_at.replace(':', '')}"
    for number in itertools.count(1):
        yield directory / (base + (f"_{number:02}" if number > 1 else "") + suffix)


def free_name(found: Iterator[Path]) -> Path:
    """The first name that nothing has, finished or not."""
    return next(name for name in found if not (name.exists() or name.is_symlink() or _has_partial(name)))


def left_name(found: Iterator[Path], directory: Path) -> Path:
    """The first name under which an interrupted backup is left; SnapfsError when there is none."""
    for name in found:
        if _has_partial(name):
            return name
        if not name.exists():
            raise SnapfsError(
                f"There is nothing to resume in {directory} of this cut; leave out --resume.", path=directory
            )
    raise AssertionError("the names have no end")


def _has_partial(name: Path) -> bool:
    partial = partial_path(name)
    return partial.exists() or partial.is_symlink()
