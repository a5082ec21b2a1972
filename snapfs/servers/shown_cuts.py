"""The snapshots that there are for users, by their ids: the cuts that the header shows, as the live server has them
open.

To be used before the event loop goes on: in threads a cut has to be held.
"""

from __future__ import annotations

from typing import NamedTuple

from cow import Cut, CutHeader, Store
from snapfs.errors import SnapfsError
from snapfs.stamps import id_text


class ShownCut(NamedTuple):
    """A snapshot: what the header says of it, and its files."""

    facts: CutHeader
    cut: Cut

    @property
    def id(self) -> str:
        return id_text(self.facts.snapshot_id)


def shown_cuts(store: Store) -> list[ShownCut]:
    """All of them, oldest first."""
    cuts = {cut.generation: cut for cut in store.cuts}
    return [ShownCut(facts, cuts[facts.generation]) for facts in store.header.shown if facts.generation in cuts]


def newest_shown(store: Store) -> ShownCut | None:
    """The one that is meant when none is named; None when there is none."""
    shown = shown_cuts(store)
    return shown[-1] if shown else None


def shown_cut(store: Store, snapshot_id: str) -> ShownCut:
    """The one of that id. SnapfsError: there is none any more."""
    for shown in shown_cuts(store):
        if shown.id == snapshot_id:
            return shown
    raise SnapfsError(f"The snapshot {snapshot_id} has ended, so nothing was done; snapfs list says which there are.")
