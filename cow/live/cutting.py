"""From one cut to the next: new, empty files made ahead, then one step that takes them into use.

Renaming the new header in is the commit point. A process killed before it leaves the old snapshot whole, one
killed after it the new one; what belongs to neither is removed at the next opening.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from cow.disk.cut import Cut, open_cut
from cow.disk.directory import remove_cut
from cow.disk.header import Header, cut_header, write_header
from cow.disk.image import Image
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


def next_header(store: Store, image: Image, cut: Cut) -> Header:
    """The header with `cut`, taken now, in the place of the one before."""
    return replace(store.header, cuts=(cut_header(image, cut.generation),))


def enter_cut(store: Store, cut: Cut, header: Header) -> Cut:
    """Make `cut` the store's present one. Nobody may be writing. The one before is the caller's to let go.

    OSError: the old one still is.
    """
    assert cut.generation == header.cut.generation > store.cut.generation, "a cut's generation is never used again"
    is_power = header.durability is Durability.POWER
    control = store.control
    cut.numbers[CutCounter.FIRST_SEQ] = control[Counter.RESERVED_SEQ]
    try:
        write_header(store.path, header, store.files, durable=is_power)
    except OSError:
        # The new name may be in place already; the writes to come are preserved for the old cut only.
        _take_back(store, cut)
        raise
    # Readers of the old cut look at this last, and fail from here on.
    control[Counter.GENERATION] = cut.generation
    store.end_cut(store.cut.generation)
    return store.enter(cut, header)


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
