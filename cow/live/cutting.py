"""From one cut to the next: new, empty files made ahead, then one step that takes them into use.

Renaming the new header in is the commit point. A process killed before it leaves the old snapshot whole, one
killed after it the new one; what belongs to neither is removed at the next opening.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from cow.disk.cut import Cut, open_cut
from cow.disk.directory import remove_cut
from cow.disk.header import CutHeader, Header, write_header
from cow.disk.layout import Counter, CutCounter, Durability
from cow.disk.store import Store


def prepare_cut(store: Store) -> Cut:
    """The files of the cut after the present one: sparse and empty, so size does not matter."""
    generation = store.next_generation()
    try:
        return open_cut(
            store.path, generation, store.header, store.files, writable=True, create=True, pages=store.pages
        )
    except BaseException:
        remove_cut(store.path, generation)
        raise


def enter_cut(store: Store, cut: Cut, facts: CutHeader) -> list[Cut]:
    """Make `cut` the store's present one. Nobody may be writing. Those that the header names no more are the caller's
    to let go.

    OSError: the old one still is.
    """
    assert cut.generation == facts.generation > store.cut.generation, "a cut's generation is never used again"
    header = replace(store.header, cuts=(*_before(store.header.cuts), facts))
    is_power = header.durability is Durability.POWER
    control = store.control
    cut.numbers[CutCounter.FIRST_SEQ] = control[Counter.RESERVED_SEQ]
    try:
        write_header(store.path, header, store.files, durable=is_power)
    except OSError:
        # The new name may be in place already; the writes to come are preserved for the old cut only.
        _take_back(store, cut)
        raise
    # Readers look at these last. Those of older cuts go on through this one, those of a cut that is gone fail.
    control[Counter.GENERATION] = cut.generation
    return _follow_header(store, cut, header)


def _before(cuts: tuple[CutHeader, ...]) -> tuple[CutHeader, ...]:
    """What stays of `cuts` when there is a newer one. One without a name is there until the next: it goes, or if
    older ones need it, or somebody holds it, is hidden."""
    *older, newest = cuts
    if newest.name and not newest.is_hidden:
        return cuts
    return (*older, replace(newest, is_hidden=True)) if older or newest.holders else ()


def change_cuts(store: Store, cuts: Sequence[CutHeader]) -> list[Cut]:
    """Give the header another list of cuts, with the present one as it is. Those that it names no more are the
    caller's to let go. One at a time, and none beside a cut. OSError: nothing changed, or nobody knows before the
    next opening.
    """
    assert cuts[-1].generation == store.cut.generation, "the present cut goes only when there is another"
    header = replace(store.header, cuts=tuple(cuts))
    write_header(store.path, header, store.files, durable=header.durability is Durability.POWER)
    return _follow_header(store, store.cut, header)


def _follow_header(store: Store, cut: Cut, header: Header) -> list[Cut]:
    """Tell everybody: readers of what is hidden or gone fail, the others look at the list again."""
    shown = {one.generation for one in header.cuts if not one.is_hidden}
    for one in store.header.cuts:
        if one.generation not in shown:
            store.end_cut(one.generation)
    gone = store.enter(cut, header)
    tell_of_change(store)
    return gone


def tell_of_change(store: Store) -> None:
    """Of the list of cuts, or which of them are over: everybody looks again. One at a time."""
    store.control[Counter.HEADERS] += 1


def _take_back(store: Store, cut: Cut) -> None:
    try:
        write_header(store.path, store.header, store.files, durable=False)
    except OSError:
        # Then the header may name the refused one for ever: at the next opening it must not pass for a snapshot.
        cut.numbers[CutCounter.UNREADABLE] = 1
        with contextlib.suppress(OSError):
            cut.note_unreadable(store.files)


def discard_cut(cut: Cut) -> None:
    """Let go of a cut that was prepared and is not entered."""
    cut.is_over = True
    cut.let_go()
