"""Snapshots that are over: the oldest goes at once, any other is hidden, and merged into the one before it.

A cut before it has in it what it does not have itself. So merging is: for each block that is settled in the hidden
one and not in the one before, copy the index entry, then settle it there; the blocks stay where they are. Then the
header names it no more, and its maps go. Stopped anywhere, it is begun again and changes nothing that was done.
It takes time by what the hidden cut holds, in a thread of the live server, and nobody waits for it.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import replace

from cow.disk.blocks import count_lost
from cow.disk.cut import Cut
from cow.disk.header import CutHeader
from cow.disk.layout import LOST_ENTRY, Counter, CutCounter, State, pack_missing, unpack_missing
from cow.disk.store import Store

_PIECE_BLOCKS = 1 << 16


def without(cuts: tuple[CutHeader, ...], generation: int, lost: Container[int]) -> tuple[CutHeader, ...]:
    """The list when that cut is over: what nobody reads through any more is gone, but for the newest. Those that are
    `lost` read nothing."""
    left = [replace(one, is_hidden=one.is_hidden or one.generation == generation) for one in cuts]
    at = 0
    while at < len(left) - 1 and (left[at].is_hidden or left[at].generation in lost):
        if left[at].is_hidden:
            left.pop(at)
        else:
            at += 1
    return tuple(left)


def next_to_merge(store: Store) -> int | None:
    """The hidden cut that can be merged now: not the newest, and nothing of it is in the ring any more."""
    freed_seq = store.control[Counter.FREED_SEQ]
    for cut, later in zip(store.cuts[1:], store.cuts[2:], strict=False):
        facts = store.header.cut_of(cut.generation)
        if facts is not None and facts.is_hidden and freed_seq >= later.numbers[CutCounter.FIRST_SEQ]:
            return cut.generation
    return None


def merge_maps(store: Store, generation: int) -> None:
    """Give the cut before that one all that it reads in it, durably. OSError: the disk refuses; nothing is wrong."""
    cuts = store.hold_cuts()
    try:
        at = next(at for at, cut in enumerate(cuts) if cut.generation == generation)
        older, cut = cuts[at - 1], cuts[at]
        if cut.numbers.is_kept:
            _merge(store, older, cut)
        elif older.numbers.is_kept:
            # What it had for the one before it, nobody can tell.
            older.note_unreadable(store.files)
            older.numbers[CutCounter.STATE] = State.DAMAGED
            older.numbers[CutCounter.UNREADABLE] = 1
        for file in older.maps:
            store.files.sync(file.fd)
    finally:
        for one in cuts:
            one.let_go()


def _merge(store: Store, older: Cut, cut: Cut) -> None:
    _note_lost(store, older, cut)
    for first, end in cut.settled.set_runs():
        for run in _owed_runs(older, first, end):
            older.index.allocate(*run)
            older.index.set_entries(run[0], cut.index.get_range(*run))
            older.settled.set_range(*run)
    for run in cut.changed.set_runs():
        older.changed.set_range(*run)
    # What both owed when the image was cut short, it cannot give for the one before either.
    missing_bytes = max(_missing_bytes(older), _missing_bytes(cut))
    if missing_bytes:
        older.numbers[CutCounter.MISSING_BYTES] = pack_missing(missing_bytes)


def _note_lost(store: Store, older: Cut, cut: Cut) -> None:
    """What the image lost while the one before owed it, it does not have in this one, which preserved what was there
    later. Durably before any of it is settled: else the record would pass for its own after a power loss."""
    missing_bytes, geometry = _missing_bytes(older), store.geometry
    if not missing_bytes:
        return
    first, _ = geometry.span(max(0, geometry.image_bytes - missing_bytes), 1)
    runs = [
        run for low, high in cut.settled.set_runs(first, geometry.block_count) for run in _owed_runs(older, low, high)
    ]
    for run in runs:
        older.index.allocate(*run)
        older.index.set_stored(*run, LOST_ENTRY)
    store.files.sync(older.index.file.fd)
    for run in runs:
        older.settled.set_range(*run)


def _owed_runs(older: Cut, first: int, end: int) -> Iterator[tuple[int, int]]:
    for low in range(first, end, _PIECE_BLOCKS):
        yield from older.settled.clear_runs(low, min(low + _PIECE_BLOCKS, end))


def _missing_bytes(cut: Cut) -> int:
    return unpack_missing(cut.numbers[CutCounter.MISSING_BYTES])


def count_merged(older: Cut, cut: Cut) -> None:
    """The numbers of what was merged; once, when the header names `cut` no more."""
    with older.counting:
        _count_merged(older, cut)


def _count_merged(older: Cut, cut: Cut) -> None:
    numbers = older.numbers
    numbers[CutCounter.SETTLED_BLOCKS] = older.settled.count()
    numbers[CutCounter.CHANGED_BLOCKS] = older.changed.count()
    numbers[CutCounter.PRESERVED_BLOCKS] = older.index.count()
    lost_blocks = count_lost(older, 0, older.settled.block_count)
    numbers[CutCounter.LOST_BLOCKS] = (
        lost_blocks + numbers[CutCounter.EXCUSED_BLOCKS] - numbers[CutCounter.SPOILT_BLOCKS]
    )
    for number in (CutCounter.STORED_BYTES, CutCounter.STORED_RAW_BYTES, CutCounter.RETURNED_BYTES):
        numbers[number] += cut.numbers[number]
