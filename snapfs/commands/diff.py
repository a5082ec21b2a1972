"""`snapfs diff`: which blocks were written to the live view since a snapshot was taken, or between two."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from snapfs.chosen import id_of, read_chosen, read_status_with
from snapfs.errors import UsageError
from snapfs.noted import noted_between
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
    blocks = noted_between(store, first.id, None if last is None else last.id, path)
    if blocks is None:
        raise UsageError(f"{until} is older than {since}; name the older one first.")
    return Changes(first, last, blocks)


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
