"""The cuts of a mounted image, looked at in its store: what its server need not be asked for.

Each cut notes what was written until the next one, also a cut that is over and hidden. So what was written between
two is what was noted by all cuts from the older one up to the newer one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cow import Files, Store, StoreError, changed_in, open_reader, why_void
from snapfs.errors import SnapfsError, SnapshotLostError
from snapfs.stamps import id_text
from snapfs.system.stores import name_of
from snapfs.usedmap.result import ImageMap

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


def noted_between(store: Path, since_id: str, until_id: str | None, path: Path) -> ImageMap | None:
    """What was written between two of these ids, until now without the second, of what is called `path`: a bit for
    each block that was written to before the call, and for some that are written to meanwhile. None: the second is
    the older one.

    SnapshotLostError: nobody has noted what was written since a snapshot was lost. SnapfsError: they cannot be
    looked at, or one is not there any more.
    """
    reader = open_cuts(store)
    try:
        begin = place_of(reader, since_id)
        end = len(reader.cuts) if until_id is None else place_of(reader, until_id)
        if end < begin:
            return None
        geometry, cuts = reader.geometry, reader.cuts[begin:end]
        changed = changed_in(cuts, geometry.block_count)
        # Last: from then on it is not noted any more.
        reason = why_void(cuts)
    finally:
        reader.close()
    if reason is not None:
        raise SnapshotLostError(
            f"Nobody knows what was written to {path} since the snapshot, because that was lost meanwhile "
            f"({reason.name.lower()}); take a new one.",
            path=path,
        )
    return ImageMap(geometry.block_bytes, geometry.image_bytes, changed, [])
