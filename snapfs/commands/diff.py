"""`snapfs diff`: which blocks were written to the live view since a snapshot was taken, or between two.

Each cut notes what was written until the next one, also a cut that is over and hidden. So what was written between
two is what was noted by all cuts from the older one up to the newer one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bitarray import bitarray

from cow import Cut, changed_in, why_void
from snapfs.chosen import id_of, read_chosen, read_status_with
from snapfs.commands.cuts import open_cuts, place_of
from snapfs.errors import SnapshotLostError, UsageError
from snapfs.system.discovery import find_store
from snapfs.usedmap.domain import set_extents
from snapfs.usedmap.result import ImageMap


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One of those between which something was written."""

    id: str
    taken_at: str


@dataclass(frozen=True, slots=True)
class Changes:
    """`blocks.used` has the bit of each block that was written to since the one snapshot and until the other (None:
    until now); it may hold the same bytes as before."""

    since: Snapshot
    until: Snapshot | None
    blocks: ImageMap

    @property
    def changed_bytes(self) -> int:
        return sum(length for _, length in self.extents())

    def extents(self) -> Iterator[tuple[int, int]]:
        """`(start, length)` in bytes, in order."""
        return set_extents(self.blocks)


def read_changes(path: Path, since: str | None = None, until: str | None = None) -> Changes:
    """Of the mounted image behind `path`, since that snapshot (the newest) or checkpoint, which is called by its id,
    and until that one (now): whatever was written before the call, and perhaps some of what is written meanwhile.

    SnapshotLostError: nobody has noted what was written since a snapshot was lost, so a checkpoint is void.
    """
    store = find_store(path)
    status = read_chosen(store, None) if since is None else read_status_with(store, None)
    first = chosen(status, since, path)
    last = None if until is None else chosen(status, until, path)
    reader = open_cuts(store)
    try:
        begin = place_of(reader, first.id)
        end = len(reader.cuts) if last is None else place_of(reader, last.id)
        if end < begin:
            raise UsageError(f"{until} is older than {since}; name the older one first.")
        changed, geometry = _noted(reader.cuts[begin:end], reader.geometry.block_count, path), reader.geometry
    finally:
        reader.close()
    return Changes(first, last, ImageMap(geometry.block_bytes, geometry.image_bytes, changed, []))


def chosen(status: dict[str, Any], name: str | None, path: Path) -> Snapshot:
    """The snapshot, or the checkpoint, of that name or id; None: the newest."""
    found = status["snapshot"]
    if name is not None:
        for one in status.get("checkpoints", []):
            if one["id"] == name:
                return Snapshot(one["id"], one["taken_at"])
        found_id = id_of(status["snapshots"], name, path)
        found = next(one for one in status["snapshots"] if one["id"] == found_id)
    return Snapshot(found["id"], found["taken_at"])


def _noted(cuts: Sequence[Cut], block_count: int, path: Path) -> bitarray:
    changed = changed_in(cuts, block_count)
    # Last: from then on it is not noted any more.
    reason = why_void(cuts)
    if reason is not None:
        raise SnapshotLostError(
            f"Nobody knows what was written to {path} since the snapshot, because that was lost meanwhile "
            f"({reason.name.lower()}); take a new one.",
            path=path,
        )
    return changed


def changes_json(changes: Changes, version: int) -> Iterator[str]:
    """The changes for programs as JSON text, in pieces; offsets and sizes in bytes."""
    head = json.dumps(
        {
            "version": version,
            "id": changes.since.id,
            "taken_at": changes.since.taken_at,
            "until": None if changes.until is None else asdict(changes.until),
            "image_bytes": changes.blocks.size_bytes,
            "block_bytes": changes.blocks.block_bytes,
            "changed_bytes": changes.changed_bytes,
        }
    )
    yield head.removesuffix("}") + ', "extents": ['
    comma = ""
    for start, length in changes.extents():
        yield f'{comma}{{"start": {start}, "length": {length}}}'
        comma = ", "
    yield "]}\n"
