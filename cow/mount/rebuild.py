"""Making the maps of a cut agree with what is really preserved, after a kill, a power loss or damage.

What is proof, strongest first: a record's checksum; a staged slot's checksum, seeded with its sequence
number; an index entry that points to either; a bit. From a wrong bit or entry nothing wrong is ever read
if these hold:

*   every block with a preserved copy is settled (else the image's newer bytes would be taken for old ones);
*   every settled block has a copy, or is free, or is released (else it is damaged, and reads say so);
*   an entry names only what exists.

Which maps may be believed is decided in repair; here it is carried out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from cow.disk.bitmaps import Bitmap
from cow.disk.blocks import Kind, Run, entry_runs
from cow.disk.codec import slot_checksums, slot_seed
from cow.disk.cut import Cut
from cow.disk.layout import (
    LOST_ENTRY,
    NO_TAG,
    RECORD,
    SEQ_MASK,
    STAGED,
    Counter,
    CutCounter,
    RecordFlag,
    State,
    pack_place,
    unpack_place,
)
from cow.disk.segment_files import present_segments
from cow.disk.segments import ScanProblem, scan_segment
from cow.disk.served import served_before
from cow.disk.store import Store

# --- staging -------------------------------------------------------------------------------------------------


def adopt_staging(store: Store) -> dict[int, int]:
    """Take over the ring as the killed server left it: sequence number by block, of every slot that holds one."""
    control, slots = store.control, store.staging.slots
    freed, committed, reserved = (
        control[counter] for counter in (Counter.FREED_SEQ, Counter.COMMITTED_SEQ, Counter.RESERVED_SEQ)
    )
    if not freed <= committed <= reserved <= freed + slots:
        # One of the numbers is damaged: no slot can be told from one of another lap.
        return forget_staging(store)
    # Whoever died between indexing and committing left slots that are as good as committed.
    control[Counter.COMMITTED_SEQ] = reserved
    return _live_slots(store, freed, reserved)


def _live_slots(store: Store, start: int, until: int) -> dict[int, int]:
    staging, size = store.staging, store.header.block_bytes
    found: dict[int, int] = {}
    buffer = memoryview(bytearray(size))
    tags, noted = staging.tags(start, until - start), staging.checksums(start, until - start)
    for seq, tag, checksum in zip(range(start, until), tags, noted, strict=True):
        if tag == NO_TAG or tag >= store.geometry.block_count:
            continue
        staging.read_into(buffer, seq)
        if slot_checksums(buffer, size, slot_seed(store.cut.generation, seq)) == [checksum]:
            found[tag] = seq
    return found


def find_first_slot(store: Store, staged: dict[int, int]) -> None:
    """Which slots may be the cut's own: behind those of the cuts before it, and not behind its own. A damaged number
    must not have slots freed that somebody needs."""
    numbers, reserved = store.cut.numbers, store.control[Counter.RESERVED_SEQ]
    first = min([*staged.values(), numbers[CutCounter.FIRST_SEQ], reserved])
    for older in store.of_each_cut()[:-1]:
        live = _live_slots(older, store.control[Counter.FREED_SEQ], reserved)
        first = max([*(seq + 1 for seq in live.values()), first])
    numbers[CutCounter.FIRST_SEQ] = first if store.older else 0


def forget_staging(store: Store) -> dict[int, int]:
    """Nothing in the ring counts: after a power loss, or a clean end that emptied it."""
    control = store.control
    top = max(control[Counter.RESERVED_SEQ], control[Counter.FREED_SEQ], control[Counter.COMMITTED_SEQ])
    # No sequence number may repeat, so go on above all of them; damaged ones must not use them up.
    top = (top & (SEQ_MASK >> 8)) + store.staging.slots
    for counter in (Counter.RESERVED_SEQ, Counter.COMMITTED_SEQ, Counter.FREED_SEQ):
        control[counter] = top
    return {}


# --- index ---------------------------------------------------------------------------------------------------


def drop_doubtful(store: Store, staged: dict[int, int], *, settled_is_known: bool) -> int:
    """Drop entries that name what cannot be; how many of them are lost unless `mend_index` finds them.

    An entry whose block is not settled was never finished: the image still holds the block, nothing is lost.
    """
    cut, lost_blocks = store.cut, 0
    for block_no in _doubtful(store, staged):
        is_lost = cut.settled.get(block_no) or not settled_is_known
        cut.index.set_stored(block_no, block_no + 1, LOST_ENTRY if is_lost else 0)
        lost_blocks += is_lost
    return lost_blocks


def _doubtful(store: Store, staged: dict[int, int]) -> Iterator[int]:
    sizes, released = _segment_sizes(store), store.cut.released
    for first, entries in store.cut.index.filled_runs():
        for run in entry_runs(first, entries):
            for block_no in _senseless(run, staged, sizes):
                # What was released may be gone, and is never read.
                if not released.get(block_no):
                    yield block_no


def _segment_sizes(store: Store) -> dict[int, int]:
    """Of all that an entry may name: also what is just being merged into the cut."""
    segments = store.cut.segments
    present = present_segments(segments.directory)
    return {
        number: os.stat(path).st_size for number, generation, path in present if generation >= segments.generation
    }


def _senseless(run: Run, staged: dict[int, int], sizes: dict[int, int]) -> Iterable[int]:
    """The blocks of the run whose entry names no slot and no record that there is."""
    kind, first, end, entry = run
    if entry == 0 or kind is Kind.LOST:
        return ()
    if kind is Kind.STAGED:
        seqs = zip(range(first, end), range(entry & SEQ_MASK, (entry & SEQ_MASK) + end - first), strict=True)
        return (block_no for block_no, seq in seqs if staged.get(block_no) != seq)
    place = unpack_place(entry)
    is_there = kind is Kind.STORED and place.offset + RECORD.size < sizes.get(place.segment_no, 0)
    return () if is_there else range(first, end)


def distrust_index(store: Store) -> None:
    """After a power loss entries are as old as the disk left them: each says that there was a record, of this cut or
    of one that was merged into it, and where it is now is for `mend_index` to find."""
    cut, own = store.cut, store.cut.generation
    generations = {number: generation for number, generation, _ in present_segments(cut.segments.directory)}
    for first, entries in cut.index.filled_runs():
        for kind, low, high, entry in entry_runs(first, entries):
            if entry:
                is_merged = kind is Kind.STORED and generations.get(unpack_place(entry).segment_no, own) != own
                cut.index.set_stored(low, high, 0 if is_merged else LOST_ENTRY)
    for low, high in _unneeded(store, cut.released):
        # It may be gone, and is never read.
        for first, entries in cut.index.filled_runs(low, high):
            cut.index.set_stored(first, first + len(entries), 0)


def mend_index(store: Store, staged: dict[int, int], *, settled_is_known: bool) -> None:
    """Fill entries that are missing or lost from the records and slots that hold their blocks. A lost one only from
    the cut's own: what was merged into it preserved the block too, but later, with other content. What was never
    merged stays where it is, and what is not settled here was not."""
    cut, count = store.cut, store.geometry.block_count
    for number in cut.segments.numbers():
        for found in scan_segment(cut.segments, number, store.files, verify=True):
            if isinstance(found, ScanProblem):
                continue
            place, record = found
            first, end = record.block_no, record.block_no + record.block_count
            # Of two for one block the earlier is right: a cut that is merged into this one has it for this one only
            # where this one has none.
            if cut.segments.generation <= record.generation < cut.segments.until and end <= count:
                entry = LOST_ENTRY if record.flag is RecordFlag.LOST else pack_place(place)
                is_own = record.generation == cut.generation
                for is_settled, low, high in cut.settled.runs(first, end):
                    if is_settled or is_own or not settled_is_known:
                        _fill_entries(cut, low, high, entry, is_own=is_own)
    for block_no, seq in staged.items():
        _fill_entries(cut, block_no, block_no + 1, STAGED | seq, is_own=True)


def _fill_entries(cut: Cut, first: int, end: int, entry: int, *, is_own: bool) -> None:
    cut.index.allocate(first, end)
    for block_no, present in enumerate(cut.index.get_range(first, end), first):
        if present == 0 or (present == LOST_ENTRY and is_own):
            cut.index.set_stored(block_no, block_no + 1, entry)


# --- bitmaps and numbers -------------------------------------------------------------------------------------


def settle_preserved(store: Store) -> None:
    """Settle whatever has a copy or needs none: stopping between index and settled must not lose a block."""
    cut = store.cut
    for first, entries in cut.index.filled_runs():
        if cut.settled.all_set(first, first + len(entries)):
            continue
        for _, low, high, entry in entry_runs(first, entries):
            if entry and not cut.settled.all_set(low, high):
                cut.settled.set_range(low, high)
    for given in (cut.free, cut.released):
        for low, high in _unneeded(store, given):
            if not cut.settled.all_set(low, high):
                cut.settled.set_range(low, high)


def _unneeded(store: Store, given: Bitmap) -> Iterator[tuple[int, int]]:
    """What of the blocks that the cut's own readers do not need those of older ones do not have in it either."""
    served = served_before(store.header, store.older)
    for first, end in given.set_runs():
        for is_served, low, high in served.runs(first, end):
            if is_served:
                yield low, high


def give_up(store: Store) -> bool:
    """A cut that holds nothing for readers is wholly released, however far whoever did so has come. Whether it is
    one."""
    cut, facts = store.cut, store.header.cut_of(store.cut.generation)
    if facts is None or not store.header.gives_nothing(facts):
        return False
    if cut.released.count() < cut.released.block_count:
        cut.released.set_range(0, cut.released.block_count)
    return True


def assume_changed(store: Store, *, touched_is_known: bool) -> None:
    """Take every settled block for changed, with what is known of it only in the regions that were written to: an
    incremental backup may copy too much, never too little."""
    cut, geometry = store.cut, store.geometry
    everywhere = iter([(0, geometry.region_count)])
    for regions in everywhere if cut.touched is None or not touched_is_known else cut.touched.set_runs():
        for first, end in cut.settled.set_runs(*geometry.blocks_of(*regions)):
            cut.changed.set_range(first, end)


def touch_changed(store: Store) -> None:
    """Where a map was made from others, what it says of the writes has to be on the disk before there are more."""
    touched = store.cut.touched
    if touched is None:
        return
    for first, end in store.cut.changed.set_runs():
        touched.set_range(*store.geometry.regions(first, end))
    store.files.sync(touched.file.fd)


def recount(store: Store, *, records: bool) -> None:
    """Take the numbers of status from the maps, and with `records` from the segments themselves."""
    cut, numbers = store.cut, store.cut.numbers
    numbers[CutCounter.SETTLED_BLOCKS] = cut.settled.count()
    numbers[CutCounter.CHANGED_BLOCKS] = cut.changed.count()
    numbers[CutCounter.RELEASED_BLOCKS] = cut.released.count()
    numbers[CutCounter.FREE_BLOCKS] = cut.free.count()
    numbers[CutCounter.PRESERVED_BLOCKS] = cut.index.count()
    if not records:
        return
    numbers[CutCounter.RETURNED_BYTES] = 0
    stored = raw = 0
    for number in cut.segments.numbers():
        for found in scan_segment(cut.segments, number, store.files):
            if not isinstance(found, ScanProblem):
                stored += found[1].payload_bytes
                raw += found[1].raw_bytes
    numbers[CutCounter.STORED_BYTES], numbers[CutCounter.STORED_RAW_BYTES] = stored, raw


def mark_damaged(store: Store) -> None:
    """The snapshot goes on for what is provably right."""
    numbers = store.cut.numbers
    if numbers.state is State.ACTIVE:
        numbers[CutCounter.STATE] = State.DAMAGED


def mark_unreadable(store: Store) -> None:
    """Nothing of the snapshot can be proven right; said on the disk too, or a power loss would undo it."""
    mark_damaged(store)
    store.cut.numbers[CutCounter.UNREADABLE] = 1
    store.cut.note_unreadable(store.files)
