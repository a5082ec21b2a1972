"""From one cut to the next: new, empty files made ahead, then one step that takes them into use.

Renaming the new header in is the commit point. A process killed before it leaves the old snapshot whole, one
killed after it the new one; what belongs to neither is removed at the next opening.
"""

from __future__ import annotations

import os
import stat
import time
import uuid
from dataclasses import replace

from cow.header import Header, write_header
from cow.image import Image
from cow.layout import NO_GENERATION, Counter, Durability, State
from cow.store import Cut, Store, next_generation, open_cut, remove_cuts


def prepare_cut(store: Store) -> Cut:
    """The files of the cut after the present one: sparse and empty, so size does not matter."""
    remove_cuts(store.path, keep=store.cut.generation)
    generation = next_generation(store.path, store.cut.generation)
    return open_cut(store.path, generation, store.geometry, store.files, writable=True, create=True)


def next_header(store: Store, image: Image, cut: Cut) -> Header:
    """The header of ``cut``, taken now."""
    info = os.fstat(image.fd)
    return replace(
        store.header,
        generation=cut.generation,
        snapshot_id=uuid.uuid4().bytes,
        taken_at_ns=time.time_ns(),
        image_mode=stat.S_IMODE(info.st_mode),
        image_uid=info.st_uid,
        image_gid=info.st_gid,
        image_atime_ns=info.st_atime_ns,
        image_mtime_ns=info.st_mtime_ns,
    )


def enter_cut(store: Store, cut: Cut, header: Header) -> None:
    """Make ``cut`` the store's present one. Nobody may be writing. OSError: the old one still is."""
    is_power = header.durability is Durability.POWER
    try:
        write_header(store.path, header, store.files, durable=is_power)
    except OSError:
        # The new name may be in place already; the writes to come are preserved for the old cut only.
        write_header(store.path, store.header, store.files, durable=False)
        raise
    control = store.control
    # First of all: readers of the old cut look at this last, and fail from here on. No cut has this number, so
    # whoever opens the store after a kill before the last line knows that the numbers belong to no cut.
    control[Counter.GENERATION] = NO_GENERATION
    control[Counter.CUT_SEQ] = control[Counter.RESERVED_SEQ]
    for counter in _FRESH_COUNTERS:
        control[counter] = 0
    control[Counter.STATE] = State.ACTIVE
    control[Counter.GENERATION] = cut.generation
    store.cut, store.header = cut, header


_FRESH_COUNTERS = (
    Counter.STORED_BYTES,
    Counter.STORED_RAW_BYTES,
    Counter.PRESERVED_BLOCKS,
    Counter.SETTLED_BLOCKS,
    Counter.CHANGED_BLOCKS,
    Counter.RELEASED_BLOCKS,
    Counter.FREE_BLOCKS,
    Counter.RETURNED_BYTES,
    Counter.OVERFLOW_ERRNO,
    Counter.DAMAGED_READS,
    Counter.UNREADABLE,
    Counter.LOST_BLOCKS,
    Counter.MISSING_BYTES,
)


def discard_cut(store: Store, cut: Cut) -> None:
    """Remove a cut that was prepared and not entered, or one that has ended."""
    cut.close()
    if cut.generation != store.cut.generation:
        remove_cuts(store.path, keep=store.cut.generation)
