"""What explains a block: the one place of the table *Rules of a block* (see DESIGN.md).

    settled  released  free, known  entry             the block is
    0        0         0            -                 OWED: the next cut has it, behind the newest the image
    -        1         -            -                 RELEASED: the imager has it
    -        0         1            -                 FREE: it held nothing
    1        0         0            of a ring slot    STAGED
    1        0         0            of a record       STORED
    1        0         0            LOST_ENTRY        LOST: the image could not give it
    1        0         0            0, or no sense    UNEXPLAINED: this is never right

Whatever explains a block is stored before it becomes settled, so `settled` is looked at first: what is found then
was true at some moment of the call, whoever changes the maps meanwhile. The map of free blocks is known once its
number of the cut says so; what is in it before counts for nothing. That explains blocks, too, so it is looked at
after `settled`.

An older cut that has the block in this one is asked with `own=False`: what this one's own readers do not need
(released, free) says nothing about that one, and was settled without a copy only where that one does not look.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from typing import Final

from cow.disk.bitmaps import bitmap_bytes
from cow.disk.cut import Cut
from cow.disk.layout import KIND_MASK, LOST_ENTRY, STAGED, STORED, CutCounter


class Kind(Enum):
    """What explains a block: see above."""

    OWED = "owed"
    RELEASED = "released"
    FREE = "free"
    STAGED = "staged"
    STORED = "stored"
    LOST = "lost"
    UNEXPLAINED = "unexplained"


# Blocks `first` to `end` of one kind: `(kind, first, end, entry)`. STAGED: in consecutive slots, `entry` is
# that of the first; STORED, LOST, UNEXPLAINED: all have this entry; else it is 0. A plain tuple: reads make many.
Run = tuple[Kind, int, int, int]
# What the index says of blocks from the first on, as `entry_runs`.
RunsOf = Callable[[int, list[int]], list[Run]]


# To look a member of an enumeration up takes longer than to use it.
_OWED: Final = Kind.OWED
_RELEASED: Final = Kind.RELEASED
_FREE: Final = Kind.FREE
_STAGED: Final = Kind.STAGED
_STORED: Final = Kind.STORED
_LOST: Final = Kind.LOST
_UNEXPLAINED: Final = Kind.UNEXPLAINED
_FREE_BLOCKS: Final = CutCounter.FREE_BLOCKS.value
# What a larger range is looked at in, so that memory stays bounded.
_PIECE_BLOCKS: Final = 1 << 16


def classify(cut: Cut, first: int, end: int, *, free_counts: bool = True, own: bool = True) -> Iterable[Run]:
    """What explains each of the blocks `first` to `end`, in runs, in order.

    Of a large range, what never was anything but owed is not looked at (the holes of `settled`), and a run may be
    cut in two at a piece's border. Without `free_counts` as if the map of free blocks were not known yet; `own`:
    see the module's docstring.
    """
    if end - first <= _PIECE_BLOCKS:
        return _explain(cut, first, end, free_counts, own, entry_runs)
    return _in_pieces(cut, first, end, free_counts, own, entry_runs)


def explain_through(cuts: Sequence[Cut], first: int, end: int) -> Iterator[Run]:
    """The same for readers of the first of `cuts`, which has in those after it, up to the newest, what it does not
    have itself. OWED: the image has it."""
    looked_at = [iter(classify(cuts[0], first, end))]
    while looked_at:
        run = next(looked_at[-1], None)
        if run is None:
            looked_at.pop()
        elif run[0] is _OWED and len(looked_at) < len(cuts):
            looked_at.append(iter(classify(cuts[len(looked_at)], run[1], run[2], own=False)))
        else:
            yield run


def count_lost(cut: Cut, first: int, end: int, *, free_counts: bool = True) -> int:
    """How many of the blocks can never be read any more though somebody may ask for them."""
    runs = _in_pieces(cut, first, end, free_counts, True, _lost_runs)
    return sum(high - low for kind, low, high, _ in runs if kind is _LOST or kind is _UNEXPLAINED)


def is_missed(cut: Cut, block_no: int) -> bool:
    """Whether somebody may ask for the block, of which nothing is left: it is settled, and not free or released. By
    bits alone, for who holds a lock."""
    if not cut.settled.get(block_no) or cut.released.get(block_no):
        return False
    return not (cut.numbers[_FREE_BLOCKS] and cut.free.get(block_no))


def entry_runs(first: int, entries: list[int]) -> list[Run]:
    """What the index alone says of the blocks from `first` on; UNEXPLAINED, with entry 0, where it says nothing."""
    start, count = 0, len(entries)
    runs: list[Run] = []
    while start < count:
        entry, stop = entries[start], start + 1
        kind = _kind_of(entry)
        if kind is _STAGED:
            while stop < count and entries[stop] == entry + stop - start:
                stop += 1
        else:
            while stop < count and entries[stop] == entry:
                stop += 1
        runs.append((kind, first + start, first + stop, entry))
        start = stop
    return runs


def _lost_runs(first: int, entries: list[int]) -> list[Run]:
    """The same, or nothing where no block is lost: so it nearly always is, and looking at each takes far longer."""
    is_fine = min(entries) >= STAGED and max(entries) < KIND_MASK and LOST_ENTRY not in entries
    return [] if is_fine else entry_runs(first, entries)


def _kind_of(entry: int) -> Kind:
    bits = entry & KIND_MASK
    if bits == STAGED:
        return _STAGED
    if bits == STORED:
        return _STORED if entry != LOST_ENTRY else _LOST
    return _UNEXPLAINED


def _explain(cut: Cut, first: int, end: int, free_counts: bool, own: bool, runs_of: RunsOf) -> list[Run]:
    settled = cut.settled
    if not settled.any_set(first, end):
        return _explain_unsettled(cut, first, end, free_counts, own)
    if settled.all_set(first, end):
        return _explain_settled(cut, first, end, free_counts, own, runs_of)
    runs: list[Run] = []
    for is_settled, low, high in settled.runs(first, end):
        if is_settled:
            runs += _explain_settled(cut, low, high, free_counts, own, runs_of)
        else:
            runs += _explain_unsettled(cut, low, high, free_counts, own)
    return runs


def _explain_unsettled(cut: Cut, first: int, end: int, free_counts: bool, own: bool) -> list[Run]:
    free_counts = free_counts and own and cut.numbers[_FREE_BLOCKS] > 0
    if own and (cut.released.any_set(first, end) or (free_counts and cut.free.any_set(first, end))):
        return list(_explain_excused(cut, first, end, free_counts, lambda low, high: [(_OWED, low, high, 0)]))
    return [(_OWED, first, end, 0)]


def _explain_settled(cut: Cut, first: int, end: int, free_counts: bool, own: bool, runs_of: RunsOf) -> list[Run]:
    free_counts = free_counts and own and cut.numbers[_FREE_BLOCKS] > 0
    if own and (cut.released.any_set(first, end) or (free_counts and cut.free.any_set(first, end))):
        return list(
            _explain_excused(
                cut, first, end, free_counts, lambda low, high: runs_of(low, cut.index.get_range(low, high))
            )
        )
    return runs_of(first, cut.index.get_range(first, end))


def _explain_excused(
    cut: Cut, first: int, end: int, free_counts: bool, others: Callable[[int, int], list[Run]]
) -> Iterator[Run]:
    """Where some blocks are released or free; `others` explains the rest."""
    for is_released, low, high in cut.released.runs(first, end):
        if is_released:
            yield _RELEASED, low, high, 0
        elif not free_counts:
            yield from others(low, high)
        else:
            for is_free, start, stop in cut.free.runs(low, high):
                if is_free:
                    yield _FREE, start, stop, 0
                else:
                    yield from others(start, stop)


def _in_pieces(cut: Cut, first: int, end: int, free_counts: bool, own: bool, runs_of: RunsOf) -> Iterator[Run]:
    for offset, length in cut.settled.file.data_ranges(first // 8, bitmap_bytes(end)):
        low, high = max(first, offset * 8), min(end, (offset + length) * 8)
        if first < low:
            yield _OWED, first, low, 0
        for start in range(low, high, _PIECE_BLOCKS):
            yield from _explain(cut, start, min(start + _PIECE_BLOCKS, high), free_counts, own, runs_of)
        first = high
    if first < end:
        yield _OWED, first, end, 0
