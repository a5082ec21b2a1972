"""`snapfs diff`: which blocks were written to the live view since the snapshot was taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cow import Files, StoreError, open_reader
from snapfs.client import request
from snapfs.errors import SnapfsError, SnapshotLostError
from snapfs.protocol import GetStatus
from snapfs.system.discovery import find_store
from snapfs.system.stores import name_of
from snapfs.usedmap.domain import set_extents
from snapfs.usedmap.result import ImageMap


@dataclass(frozen=True, slots=True)
class Changes:
    """`blocks.used` has the bit of each block that was written to since the snapshot `id`; it may hold the same
    bytes as before."""

    id: str
    taken_at: str
    blocks: ImageMap

    @property
    def changed_bytes(self) -> int:
        return sum(length for _, length in self.extents())

    def extents(self) -> Iterator[tuple[int, int]]:
        """`(start, length)` in bytes, in order."""
        return set_extents(self.blocks)


def read_changes(path: Path) -> Changes:
    """Of the mounted image behind `path`: whatever was written before the call, and perhaps some of what is written
    meanwhile.

    SnapshotLostError: nobody has noted what was written since the snapshot was lost.
    """
    store = find_store(path)
    given = request(store, GetStatus())
    snapshot: dict[str, Any] = given.status["snapshot"]
    try:
        reader = open_reader(store, Files())
    except StoreError as error:
        raise SnapfsError(f"{name_of(store)} {error.reason}; look again when it is mounted.", path=store) from error
    try:
        if reader.cut.generation != given.generation:
            raise SnapfsError(f"A new cut of {path} was taken meanwhile; ask again.", path=path)
        changed = reader.cut.changed.copy()
        # Last: from then on it is not noted any more.
        if not reader.cut.numbers.is_kept:
            raise SnapshotLostError(
                f"Nobody knows what was written to {path} since the snapshot, because that was lost meanwhile; "
                "take a new one.",
                path=path,
            )
        geometry = reader.geometry
    finally:
        reader.close()
    blocks = ImageMap(geometry.block_bytes, geometry.image_bytes, changed, [])
    return Changes(snapshot["id"], snapshot["taken_at"], blocks)


def changes_json(changes: Changes, version: int) -> Iterator[str]:
    """The changes for programs as JSON text, in pieces; offsets and sizes in bytes."""
    head = json.dumps(
        {
            "version": version,
            "id": changes.id,
            "taken_at": changes.taken_at,
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
