"""An image that is half-way back to a snapshot, in words: what the note of a revert in the store means for users."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cow import Store, read_revert_note
from snapfs.stamps import id_text


@dataclass(frozen=True, slots=True)
class Target:
    """The snapshot `id` that the image is being reverted to; `name` is "" for one without, and for one that is gone
    or that nobody knows."""

    id: str
    name: str
    is_there: bool

    @property
    def shown(self) -> str:
        """As users name it."""
        return self.name or self.id

    def half_way(self, image: Path, live_file: Path) -> str:
        """What that means, and the way out; to go on behind a colon or to be a sentence."""
        if not self.is_there:
            return (
                f"{image} is half-way back to a snapshot that is gone, and {live_file} cannot be opened before "
                f"snapfs revert {live_file.parent} NAME has brought it to another one"
            )
        return (
            f"{image} is half-way back to {self.shown}, and {live_file} cannot be opened before snapfs revert "
            f"{live_file.parent} {self.shown}, or to another snapshot, has come to its end"
        )


def target_of(store: Store) -> Target | None:
    """The target of the revert that is under way or was stopped; None when there is none."""
    snapshot_id = read_revert_note(store.path)
    if snapshot_id is None:
        return None
    name = next((one.name for one in store.header.shown if one.snapshot_id == snapshot_id), None)
    return Target(id_text(snapshot_id), name or "", name is not None)
