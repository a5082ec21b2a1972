"""Which of the snapshots of an image a command is about, and where its file is.

Rules:
- A snapshot is named as `snapfs list` prints it, by its name or its id; without either the newest is meant. Nobody
  can choose an id, so one that fits comes before a name.
- It is known by its id from then on: the same name may be another snapshot's later. Its file is the one under its
  name if it has one, for SNAP/disk.img is another's after the next cut; by its inode it is known to be that one's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snapfs.client import request
from snapfs.errors import SnapfsError
from snapfs.protocol import GetSnapshot, GetStatus
from snapfs.system.shown_files import SNAPSHOTS_NAME, ShownFile


def read_chosen(store: Path, name: str | None) -> dict[str, Any]:
    """The status of the instance in `store`, with that snapshot as its `snapshot`; None: the newest. SnapfsError:
    there is none."""
    status = read_status_with(store, name)
    if status["snapshot"]["id"] is None:
        image = Path(status["image"])
        raise SnapfsError(f"{image} has no snapshot now; take one (snapfs snapshot).", path=image)
    return status


def read_status_with(store: Path, name: str | None, timeout_s: float | None = None) -> dict[str, Any]:
    """The same, also when there is no snapshot."""
    status = request(store, GetStatus(), timeout_s).status
    if name is not None:
        chosen_id = id_of(status["snapshots"], name, status["image"])
        if chosen_id != status["snapshot"]["id"]:
            status["snapshot"] = request(store, GetSnapshot(id=chosen_id), timeout_s).snapshot
    return status


def id_of(snapshots: Sequence[dict[str, Any]], name: str, path: Path | str) -> str:
    """The id of the one that is called so. SnapfsError: there is none, of what is called `path`."""
    for key in ("id", "name"):
        for one in snapshots:
            if name and one[key] == name:
                found: str = one["id"]
                return found
    raise SnapfsError(f"{path} has no snapshot {name or repr(name)}; snapfs list says which there are.", path=path)


def is_newest(status: dict[str, Any]) -> bool:
    """Whether the `snapshot` of the status is the last of all."""
    return bool([status["snapshot"]["id"]] == [one["id"] for one in status["snapshots"][-1:]])


def listed_now(store: Path, snapshot_id: str, timeout_s: float | None = None) -> dict[str, Any] | None:
    """What the list says of the snapshot of that id; None: there is none any more."""
    snapshots = request(store, GetStatus(), timeout_s).status["snapshots"]
    return next((one for one in snapshots if one["id"] == snapshot_id), None)


def file_of(status: dict[str, Any]) -> ShownFile:
    """The file that shows the `snapshot` of the status."""
    snapshot = status["snapshot"]
    name = str(snapshot["name"])
    folder = (SNAPSHOTS_NAME, name) if name else ()
    return ShownFile(Path(status["snap"]), (*folder, str(status["view_name"])), int(snapshot["inode"]))
