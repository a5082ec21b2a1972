"""The rules that the maps and numbers of a cut keep, as code: each one broken is a sentence.

Some hold at every moment, whoever works on the store, and after the death of all who did: those of a block that was
overwritten. The others hold *at rest*: while nobody is between two steps of a change, and once the store was opened
again after a kill (see *Rules of a block* in DESIGN.md). Nothing is promised of a snapshot that is over.
"""

from __future__ import annotations

from collections.abc import Iterator

from cow.disk.bitmaps import Bitmap
from cow.disk.blocks import Kind, Run, classify, count_lost, entry_runs
from cow.disk.cut import Cut
from cow.disk.layout import RECORD, SEGMENT_BYTES, SEQ_MASK, Counter, CutCounter, unpack_place
from cow.disk.served import Served, is_read, served_before
from cow.disk.store import Store


def check_store(store: Store, *, at_rest: bool) -> Iterator[str]:
    """All rules of each cut, and of the ring."""
    yield from check_ring(store)
    cuts = store.of_each_cut()
    for one in cuts:
        is_alone = len(cuts) == 1
        for sentence in check_rules(
            one.cut, 0, store.geometry.block_count, at_rest=at_rest, store=one, is_alone=is_alone
        ):
            yield sentence if len(cuts) == 1 else f"cut {one.cut.generation}: {sentence}"


def check_ring(store: Store) -> Iterator[str]:
    """How the ring's numbers stand to each other, also while they change."""
    control = store.control
    freed, committed, reserved = (
        control[number] for number in (Counter.FREED_SEQ, Counter.COMMITTED_SEQ, Counter.RESERVED_SEQ)
    )
    if not freed <= committed <= reserved <= control[Counter.FREED_SEQ] + store.staging.slots:
        yield f"control: slots freed to {freed}, committed to {committed}, reserved to {reserved}"


def check_rules(
    cut: Cut, first: int, end: int, *, at_rest: bool = True, store: Store | None = None, is_alone: bool = True
) -> Iterator[str]:
    """What of blocks `first` to `end` breaks a rule; of all blocks at rest, the numbers too.

    With the `store` whose present cut it is, entries are compared with its ring, and with what an older cut needs.
    Where cuts are not `is_alone`, what one's readers do not need may be owed all the same; what explains the blocks
    of one that nobody reads may be gone.
    """
    if not cut.numbers.is_kept:
        return
    served = Served() if store is None else served_before(store.header, store.older)
    if store is None or is_read(store.header, store.cuts):
        for run in classify(cut, first, end):
            yield from _check_run(run, store if at_rest else None)
    if not served.is_all:
        yield from _missing_for(served, cut, first, end)
    if at_rest:
        if is_alone:
            yield from _not_settled(cut, first, end, "changed", cut.changed)
            yield from _not_settled(cut, first, end, "released", cut.released)
            if cut.numbers[CutCounter.FREE_BLOCKS]:
                yield from _not_settled(cut, first, end, "free", cut.free)
        yield from _owed_with_entry(cut, first, end)
        if (first, end) == (0, cut.settled.block_count):
            yield from _check_numbers(cut)


def _missing_for(served: Served, cut: Cut, first: int, end: int) -> Iterator[str]:
    """Blocks that are settled without a copy though older readers come here for them."""
    for kind, low, high, _ in classify(cut, first, end, own=False):
        if kind is Kind.UNEXPLAINED and not served.all_set(low, high):
            yield from (
                f"{_named(*run)}: overwritten without a copy, which an older cut needs"
                for is_served, *run in served.runs(low, high)
                if not is_served
            )


def _named(first: int, end: int) -> str:
    return f"block {first}" if end - first == 1 else f"blocks {first} to {end - 1}"


def _not_settled(cut: Cut, first: int, end: int, name: str, bitmap: Bitmap) -> Iterator[str]:
    """Blocks with this bit and without the one that says that nothing is owed."""
    for low, high in bitmap.set_runs(first, end):
        if not cut.settled.all_set(low, high):
            yield from (f"{_named(*run)}: {name} and yet owed" for run in cut.settled.clear_runs(low, high))


def _owed_with_entry(cut: Cut, first: int, end: int) -> Iterator[str]:
    for start, entries in cut.index.filled_runs(first, end):
        for low, high in cut.settled.clear_runs(start, start + len(entries)):
            runs = entry_runs(low, entries[low - start : high - start])
            yield from (f"{_named(*run[1:3])}: preserved and yet owed" for run in runs if run[3])


def _check_run(run: Run, store: Store | None) -> Iterator[str]:
    kind, first, end, entry = run
    if kind is Kind.UNEXPLAINED:
        yield f"{_named(first, end)}: overwritten, and nothing says where the old content is"
    elif kind is Kind.STORED:
        place = unpack_place(entry)
        if not place.segment_no or place.length < RECORD.size or place.offset + place.length > SEGMENT_BYTES:
            yield f"{_named(first, end)}: stored where no record can be ({place})"
    elif kind is Kind.STAGED and store is not None:
        yield from _check_slots(store, first, end, entry & SEQ_MASK)


def _check_slots(store: Store, first: int, end: int, seq: int) -> Iterator[str]:
    oldest = max(store.control[Counter.FREED_SEQ], store.cut.numbers[CutCounter.FIRST_SEQ])
    if not oldest <= seq < seq + end - first <= store.control[Counter.RESERVED_SEQ]:
        yield f"{_named(first, end)}: in slots of the ring that hold nothing ({seq})"
    elif store.staging.tags(seq, end - first) != list(range(first, end)):
        yield f"{_named(first, end)}: in slots of the ring that hold other blocks ({seq})"


def _check_numbers(cut: Cut) -> Iterator[str]:
    numbers = cut.numbers
    counted = {
        CutCounter.SETTLED_BLOCKS: cut.settled.count(),
        CutCounter.CHANGED_BLOCKS: cut.changed.count(),
        CutCounter.RELEASED_BLOCKS: cut.released.count(),
        CutCounter.PRESERVED_BLOCKS: cut.index.count(),
    }
    if numbers[CutCounter.FREE_BLOCKS]:
        counted[CutCounter.FREE_BLOCKS] = cut.free.count()
    for number, count in counted.items():
        if numbers[number] != count:
            yield f"numbers: {number.name.lower()} {numbers[number]}, where the maps have {count}"
    lost_blocks = count_lost(cut, 0, cut.settled.block_count)
    if numbers.lost_blocks != lost_blocks:
        yield f"numbers: {numbers.lost_blocks} lost blocks, where the maps have {lost_blocks}"
