"""The cuts of a mounted image, looked at in its store: what its server need not be asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cow import Files, Store, StoreError, open_reader
from snapfs.errors import SnapfsError
from snapfs.stamps import id_text
from snapfs.system.stores import name_of

_TRIES: Final = 10


def open_cuts(store: Path) -> Store:
    """All of them, open for looking, to be closed. SnapfsError: they cannot be."""
    for _ in range(_TRIES):
        try:
            return open_reader(store, Files())
        except StoreError as error:
            raise SnapfsError(
                f"{name_of(store)} {error.reason}; look again when it is mounted.", path=store
            ) from error
        except FileNotFoundError:
            # One that was listed is over meanwhile.
            continue
    raise SnapfsError(f"The snapshots of {name_of(store)} come and go; ask again.", path=store)


def place_of(reader: Store, snapshot_id: str) -> int:
    """Where the snapshot, or the checkpoint, of that id is among the cuts. SnapfsError: nowhere any more."""
    for place, one in enumerate(reader.header.cuts):
        if not one.is_going and id_text(one.snapshot_id) == snapshot_id:
            return place
    raise SnapfsError(
        f"The snapshot {snapshot_id} has ended meanwhile; snapfs list says which there are.", path=reader.path
    )
