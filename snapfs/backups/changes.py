"""What was written to an image between the cut of the last backup and the one that is backed up now."""

from __future__ import annotations

from dataclasses import dataclass

from bitarray import bitarray

from snapfs.imager.snapshot_source import SnapshotSource
from snapfs.imager.source import Source


@dataclass(frozen=True)
class Changed:
    """A bit per block: `written` since that cut, `used` at that cut."""

    written: bitarray
    used: bitarray


@dataclass(frozen=True)
class Void:
    """Nobody knows, and why: a part of a sentence that ends with "so everything was read and compared"."""

    reason: str


def changes_since(source: Source, cut_id: str | None) -> Changed | Void:
    """What was written since the cut of this id until that of `source`."""
    if not isinstance(source, SnapshotSource):
        return Void(f"{source.path} is not mounted with snapfs")
    if cut_id is None:
        return Void("the last backup is of the image while it was not mounted")
    return Void("nobody has noted what was written since the last backup")
