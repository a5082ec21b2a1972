"""The checkpoints of a chain of backups: what was written since the cut of its last backup stays known.

Order: the cut of a new backup is held before the backup has its names; those before it are let go when it is listed.
So whenever a command ends, the cut of the last backup that is listed is held, if it could be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from bitarray import bitarray

from snapfs.backups.changes import Changed, Void
from snapfs.client import request
from snapfs.commands.diff import read_changes
from snapfs.destination.consent import Note
from snapfs.errors import SnapfsError, SnapshotLostError, UsageError
from snapfs.imager.snapshot_source import SnapshotSource
from snapfs.imager.source import Source
from snapfs.noted import open_cuts, place_of
from snapfs.protocol import HoldCheckpoint, LetGoCheckpoints, deadline_in
from snapfs.system.discovery import find_store

_TIMEOUT_S: Final = 60.0


class ChainCheckpoints:
    """Those that the chain of this id has of the image behind `path`, which `source` reads."""

    def __init__(self, chain_id: str, path: Path, source: Source, note: Note) -> None:
        self._chain_id, self._note = chain_id, note
        self._store = find_store(path) if isinstance(source, SnapshotSource) else None
        self._path, self._source = path, source

    def hold(self) -> None:
        """The cut of the source. When it cannot be held the backup is as good, and the next one reads all."""
        if self._store is None:
            return
        cut_id = self._source.facts["cut"]["id"]
        try:
            deadline_s = deadline_in(_TIMEOUT_S)
            request(self._store, HoldCheckpoint(id=cut_id, holder=self._chain_id, deadline_s=deadline_s))
        except SnapfsError as error:
            self._note(f"The next backup will read everything: {error.sentence}")

    def let_go(self) -> None:
        """All but that; what is not let go of now is with the next backup."""
        self._let_go((self._source.facts["cut"]["id"],) if self._store is not None else (), "until the next one")

    def let_go_of_all(self) -> None:
        """There is no backup any more that would go by them."""
        self._let_go((), "until snapfs delete lets go of it")

    def _let_go(self, keep: tuple[str, ...], until: str) -> None:
        if self._store is None:
            return
        try:
            deadline_s = deadline_in(_TIMEOUT_S)
            request(self._store, LetGoCheckpoints(holder=self._chain_id, keep=keep, deadline_s=deadline_s))
        except SnapfsError as error:
            self._note(f"What was noted for the backup before is kept {until}: {error.sentence}")

    def changes_since(self, cut_id: str | None) -> Changed | Void:
        """What was written between the cut of that id and that of the source."""
        if self._store is None:
            return Void(f"{self._source.path} is not mounted with snapfs")
        if cut_id is None:
            return Void("the last backup is of the image while it was not mounted")
        try:
            changed = read_changed(self._path, cut_id, self._source.facts["cut"]["id"], self._chain_id)
            return changed or Void("the snapshot of the last backup is not held any more")
        except UsageError:
            return Void("the last backup is of a later snapshot")
        except SnapshotLostError:
            return Void("a snapshot was lost since the last backup, and what was written since is not known")
        except SnapfsError:
            return Void("what was written since the last backup is not known")


def read_changed(path: Path, since_id: str, until_id: str, holder: str | None = None) -> Changed | None:
    """What was written to the image behind `path` between two snapshots, the first of which may be a checkpoint.
    SnapfsError: it is not known, and why. None: that `holder` does not hold the first, so something may have been
    written that nobody has noted."""
    used = _used_at(find_store(path), since_id, holder)
    return None if used is None else Changed(read_changes(path, since_id, until_id).blocks.used, used)


def _used_at(store: Path, cut_id: str, holder: str | None) -> bitarray | None:
    """The map of used blocks as it is in the store; all used until it is known."""
    reader = open_cuts(store)
    try:
        place = place_of(reader, cut_id)
        if holder is not None and holder not in reader.header.cuts[place].holders:
            return None
        used = reader.cuts[place].free.copy()
        used.invert()
        return used
    finally:
        reader.close()
