"""The list of cuts of a store, as the live server changes it: one change at a time, each the rename of a header.

What the changes are, and what each costs, is in `cutting` and `merging`. Whoever is no more needed by anybody is
returned, for the caller to let go when nobody waits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Sequence
from dataclasses import replace

from cow.disk.cut import Cut
from cow.disk.header import CutHeader, with_holder
from cow.disk.layout import Counter, CutCounter
from cow.disk.releases import ReleasedRange, ReleaseQueue
from cow.disk.store import Store
from cow.errors import SnapshotEnded
from cow.live.cutting import change_cuts, enter_cut, tell_of_change
from cow.live.merging import count_merged, merge_maps, next_to_merge, without, without_holder


class Chain:
    """Thread-safe; a change waits for the disk, and for the one before it."""

    def __init__(self, store: Store, releases: ReleaseQueue) -> None:
        self._store, self._releases, self._turn = store, releases, threading.Lock()
        for facts in store.header.cuts:
            if facts.is_hidden:
                store.end_cut(facts.generation)
        self._note_hidden()

    def enter(self, cut: Cut, facts: CutHeader) -> list[Cut]:
        """See `enter_cut`."""
        with self._turn:
            gone = enter_cut(self._store, cut, facts)
            self._note_hidden()
        return gone

    def forget(self, generation: int, on_none: Callable[[], None]) -> list[Cut]:
        """A snapshot is over; `on_none` is called when nobody needs anything of the newest any more, before there can
        be another. OSError: nothing changed. SnapshotEnded: it is over already."""
        store = self._store
        with self._turn:
            if not any(one.generation == generation for one in store.header.shown):
                raise SnapshotEnded(f"cut {generation} has ended")
            return self._change(without(store.header.cuts, generation, self._lost), on_none)

    @property
    def _lost(self) -> set[int]:
        return {cut.generation for cut in self._store.cuts if not cut.numbers.is_kept}

    def _change(self, cuts: Sequence[CutHeader], on_none: Callable[[], None]) -> list[Cut]:
        """From here on the list is another one, of which fewer are needed."""
        store, lost = self._store, self._lost
        gone = change_cuts(store, cuts)
        self._note_hidden()
        self._tell_unread()
        header = store.header
        has_readers = header.has_checkpoints or any(one.generation not in lost for one in header.shown)
        # A newest one that is shown and lost says why as long as it is there.
        if header.cut.is_hidden and not has_readers:
            on_none()
        return gone

    def hold(self, snapshot_id: bytes, holder: str) -> None:
        """The snapshot, or checkpoint, of that id is a checkpoint for him from here on. OSError: nothing changed.
        SnapshotEnded: there is none. ValueError: see `with_holder`."""
        store = self._store
        with self._turn:
            facts = next((one for one in store.header.cuts if one.snapshot_id == snapshot_id), None)
            if facts is None or facts.is_going:
                raise SnapshotEnded("there is no such snapshot, and no such checkpoint")
            held = with_holder(facts, holder)
            if held is not facts:
                change_cuts(store, [held if one is facts else one for one in store.header.cuts])

    def let_go(self, holder: str, kept: Container[bytes], on_none: Callable[[], None]) -> list[Cut]:
        """All that he holds but those with the `kept` ids are checkpoints of his no more: see `forget`."""
        with self._turn:
            before = self._store.header.cuts
            cuts = without_holder(before, holder, kept, self._lost)
            return [] if cuts == before else self._change(cuts, on_none)

    def name(self, generation: int, name: str) -> None:
        """A snapshot that the next one would have replaced stays beside it, under this name; one that has a name is
        called so from here on. OSError, SnapshotEnded: as for `forget`."""
        store = self._store
        with self._turn:
            if not any(one.generation == generation for one in store.header.shown):
                raise SnapshotEnded(f"cut {generation} has ended")
            change_cuts(
                store,
                [replace(one, name=name) if one.generation == generation else one for one in store.header.cuts],
            )

    def merge(self) -> Cut | None:
        """Merge a cut that is going into the one before it; None when there is none that can be merged now. One at a
        time. OSError: the disk refuses; it can be tried again."""
        store = self._store
        with self._turn:
            generation = next_to_merge(store) if self._is_followed else None
        if generation is None:
            return None
        merge_maps(store, generation)
        with self._turn:
            cuts = store.cuts
            at = next((at for at, cut in enumerate(cuts) if cut.generation == generation), 0)
            if not at:
                return None  # the ones before it are gone, and it with them
            change_cuts(store, [one for one in store.header.cuts if one.generation != generation])
            count_merged(cuts[at - 1], cuts[at])
            # The one before had some of it itself, and may have released what was copied for it; and it has more than
            # the one that is gone had, so less of the one behind is needed.
            self._tell_whole(cuts[at - 1])
            self._tell_released(cuts[at + 1])
        return cuts[at]

    def tell_of_change(self) -> None:
        """See there."""
        with self._turn:
            tell_of_change(self._store)
            self._tell_unread()

    # --- the compactor ---------------------------------------------------------------------------------------

    def _note_hidden(self) -> None:
        """None that is hidden now is merged before the compactor has seen this list: it may be giving back, or
        storing again, what the entries to be copied name."""
        self._hidden_headers = self._store.control[Counter.HEADERS]

    @property
    def _is_followed(self) -> bool:
        return self._store.control[Counter.FOLLOWED_HEADERS] >= self._hidden_headers

    def _tell_unread(self) -> None:
        """Of those behind one without readers: fewer may read through them."""
        has_readers = False
        for cut in self._store.cuts:
            is_kept, facts = cut.numbers.is_kept, self._store.header.cut_of(cut.generation)
            if is_kept and not has_readers:
                self._tell_released(cut)
            has_readers = is_kept and facts is not None and not facts.is_hidden

    def _tell_released(self, cut: Cut) -> None:
        """Of what is released in it, fewer may need the records than did."""
        if cut.numbers[CutCounter.RELEASED_BLOCKS]:
            self._tell_whole(cut)

    def _tell_whole(self, cut: Cut) -> None:
        self._releases.put(ReleasedRange(cut.generation, 0, cut.released.block_count))
