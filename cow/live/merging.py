"""Snapshots that are over: the oldest goes at once, any other is hidden, and merged into the one before it. One that
somebody holds, a checkpoint, stays, for what it notes of the writes; what is behind it is merged into it.

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
from cow.disk.files import PAGE_BYTES
from cow.disk.header import CutHeader, Header
from cow.disk.layout import ENTRY_BYTES, LOST_ENTRY, Counter, CutCounter, State, pack_missing, unpack_missing
from cow.disk.served import served_before
from cow.disk.store import Store

_PIECE_BLOCKS = 1 << 16
# A page of the index: to look for holes in less takes longer than to copy it.
_FEW_BLOCKS = PAGE_BYTES // ENTRY_BYTES


def without(cuts: tuple[CutHeader, ...], generation: int, lost: Container[int]) -> tuple[CutHeader, ...]:
    """The list when that cut is over for its users."""
    return _needed([replace(one, is_hidden=one.is_hidden or one.generation == generation) for one in cuts], lost)


def without_holder(
    cuts: tuple[CutHeader, ...], holder: str, kept: Container[bytes], lost: Container[int]
) -> tuple[CutHeader, ...]:
    """The list when he holds no cut any more but those with the `kept` ids."""

    def let_go(one: CutHeader) -> CutHeader:
        if one.snapshot_id in kept:
            return one
        return replace(one, holders=tuple(other for other in one.holders if other != holder))

    return _needed(list(map(let_go, cuts)), lost)


def _needed(left: list[CutHeader], lost: Container[int]) -> tuple[CutHeader, ...]:
    """What nobody reads through any more, nor asks what was written since, is gone, but for the newest. Those that
    are `lost` read nothing."""
    at = 0
    while at < len(left) - 1 and (left[at].is_going or left[at].generation in lost):
        if left[at].is_going:
            left.pop(at)
        else:
            at += 1
    return tuple(left)


def next_to_merge(store: Store) -> int | None:
    """The cut that is going and can be merged now: not the newest, nothing of it is in the ring any more, and a
    checkpoint before it counts as released already, for what it gets has no copy where nobody reads it."""
    freed_seq, header = store.control[Counter.FREED_SEQ], store.header
    for older, cut, later in zip(store.cuts, store.cuts[1:], store.cuts[2:], strict=False):
        facts = header.cut_of(cut.generation)
        if facts is None or not facts.is_going or freed_seq < later.numbers[CutCounter.FIRST_SEQ]:
            continue
        if not is_to_be_given_up(header, older):
            return cut.generation
    return None


def is_to_be_given_up(header: Header, cut: Cut) -> bool:
    """Whether it holds nothing for readers any more and is not wholly released yet."""
    facts = header.cut_of(cut.generation)
    if facts is None or not header.gives_nothing(facts) or not cut.numbers.is_kept:
        return False
    return cut.numbers[CutCounter.RELEASED_BLOCKS] < cut.released.block_count


def merge_maps(store: Store, generation: int) -> None:
    """Give the cut before that one all that it reads in it, durably. OSError: the disk refuses; nothing is wrong."""
    cuts = store.hold_cuts()
    try:
        at = next(at for at, cut in enumerate(cuts) if cut.generation == generation)
        older, cut = cuts[at - 1], cuts[at]
        if cut.numbers.is_kept:
            # Else what it has is of no use to anybody but for what was written meanwhile.
            if not served_before(store.header, cuts[:at]).is_all:
                _merge(store, older, cut)
            _note_changed(store, older, cut)
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
            _copy_entries(older, cut, *run)
            older.settled.set_range(*run)


def _note_changed(store: Store, older: Cut, cut: Cut) -> None:
    for run in cut.changed.set_runs():
        older.changed.set_range(*run)
        if older.touched is not None:
            older.touched.set_range(*store.geometry.regions(*run))
    # What both owed when the image was cut short, it cannot give for the one before either; and nobody wrote that.
    missing_bytes = max(_missing_bytes(older), _missing_bytes(cut))
    if missing_bytes:
        older.numbers[CutCounter.MISSING_BYTES] = pack_missing(missing_bytes)


def _copy_entries(older: Cut, cut: Cut, first: int, end: int) -> None:
    """Where neither has any, as most of a checkpoint, a hole stays one."""
    if end - first <= _FEW_BLOCKS:
        older.index.allocate(first, end)
        older.index.set_entries(first, cut.index.get_range(first, end))
        return
    for start, entries in older.index.filled_runs(first, end):
        if any(entries):
            older.index.allocate(start, start + len(entries))
            older.index.set_entries(start, [0] * len(entries))
    for start, entries in cut.index.filled_runs(first, end):
        older.index.allocate(start, start + len(entries))
        older.index.set_entries(start, entries)


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
