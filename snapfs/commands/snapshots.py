"""`snapfs list` and `snapfs delete`: the snapshots of an instance, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snapfs.chosen import id_of
from snapfs.client import request
from snapfs.commands.status import read_status
from snapfs.errors import SnapfsError
from snapfs.protocol import DeleteSnapshot, deadline_in
from snapfs.system.discovery import find_store

_DELETE_TIMEOUT_S = 60.0


def listed(path: Path) -> list[dict[str, Any]]:
    """The snapshots of the instance behind `path`, oldest first."""
    snapshots: list[dict[str, Any]] = read_status(find_store(path))["snapshots"]
    return snapshots


def delete(path: Path, names: Sequence[str]) -> None:
    """Those with these names or ids are over. SnapfsError: none is, or the sentence says which are."""
    store = find_store(path)
    snapshots: list[dict[str, Any]] = read_status(store)["snapshots"]
    ids = [id_of(snapshots, name, path) for name in dict.fromkeys(names)]
    for done, snapshot_id in enumerate(ids):
        try:
            request(store, DeleteSnapshot(id=snapshot_id, deadline_s=deadline_in(_DELETE_TIMEOUT_S)))
        except SnapfsError as error:
            if not done:
                raise
            raise SnapfsError(f"{done} of {len(ids)} snapshots were deleted. {error.sentence}") from error
