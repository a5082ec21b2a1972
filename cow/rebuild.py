"""Making the maps of a cut agree with what is really preserved, after a kill, a power loss or damage.

What is proof, strongest first: a record's checksum; a staged slot's checksum, seeded with its sequence
number; an index entry that points to either; a bit. From a wrong bit or entry nothing wrong is ever read
if these hold:

*   every block with a preserved copy is settled (else the image's newer bytes would be taken for old ones);
*   every settled block has a copy, or is free, or is released (else it is damaged, and reads say so);
*   an entry names only what exists.
"""

from __future__ import annotations

import os

from cow.codec import slot_checksums, slot_seed
from cow.layout import (
    KIND_MASK,
    LOST_ENTRY,
    NO_TAG,
    RECORD,
    SEQ_MASK,
    STAGED,
    STORED,
    Counter,
    State,
    pack_place,
    unpack_place,
)
from cow.segments import ScanProblem, scan_segment, segment_numbers, segment_path
from cow.store import Store


def live_slots(store: Store) -> dict[int, int]:
    """Sequence number by block, of every slot of the ring that holds a whole block of this cut."""
    staging, control = store.staging, store.control
    until = control[Counter.RESERVED_SEQ]
    start = max(until - staging.slots, 0)
    size, found = store.header.block_bytes, {}
    buffer = memoryview(bytearray(size))
    tags, noted = staging.tags(start, until - start), staging.checksums(start, until - start)
    for seq, tag, checksum in zip(range(start, until), tags, noted, strict=True):
        if tag == NO_TAG or tag >= store.geometry.block_count:
            continue
        staging.read_into(buffer, seq)
        if slot_checksums(buffer, size, slot_seed(store.cut.generation, seq)) == [checksum]:
            found[tag] = seq
    return found


def adopt_staging(store: Store) -> dict[int, int]:
    """Take over the ring as the killed server left it; the slots that hold blocks, as ``live_slots``."""
    control, slots = store.control, store.staging.slots
    freed, committed, reserved = (
        control[counter] for counter in (Counter.FREED_SEQ, Counter.COMMITTED_SEQ, Counter.RESERVED_SEQ)
    )
    if not freed <= committed <= reserved <= freed + slots:
        # One of the numbers is damaged. No sequence number may repeat, so go on far above all of them.
        reserved = (max(freed, committed, reserved) & (SEQ_MASK >> 8)) + slots
        control[Counter.RESERVED_SEQ] = control[Counter.FREED_SEQ] = reserved
        control[Counter.COMMITTED_SEQ] = reserved
        return {}
    found = live_slots(store)
    # Whoever died between indexing and committing left slots that are as good as committed.
    control[Counter.COMMITTED_SEQ] = reserved
    return found


def forget_staging(store: Store) -> dict[int, int]:
    """Nothing in the ring counts (after a power loss, or a clean end that drained it)."""
    control = store.control
    top = max(control[Counter.RESERVED_SEQ], control[Counter.FREED_SEQ], control[Counter.COMMITTED_SEQ])
    top = (top & (SEQ_MASK >> 8)) + store.staging.slots
    for counter in (Counter.RESERVED_SEQ, Counter.COMMITTED_SEQ, Counter.FREED_SEQ):
        control[counter] = top
    return {}


def segment_sizes(store: Store) -> dict[int, int]:
    """Bytes of each segment present, by number."""
    directory = store.cut.segments
    return {number: os.stat(segment_path(directory, number)).st_size for number in segment_numbers(directory)}


def settle_preserved(store: Store) -> None:
    """Settle whatever has a copy or needs none: stopping between index and settled must not lose a block."""
    cut = store.cut
    for first, entries in cut.index.filled_runs():
        for block_no, entry in enumerate(entries, first):
            if entry and not cut.settled.get(block_no):
                cut.settled.set_range(block_no, block_no + 1)
    for given in (cut.free, cut.released):
        for first, end in given.set_runs():
            cut.settled.set_range(first, end)


def doubtful_blocks(store: Store, staged: dict[int, int], sizes: dict[int, int]) -> list[int]:
    """Blocks whose entry names something that cannot be."""
    return [
        block_no
        for first, entries in store.cut.index.filled_runs()
        for block_no, entry in enumerate(entries, first)
        if entry and entry != LOST_ENTRY and not _is_sane(block_no, entry, staged, sizes)
    ]


def _is_sane(block_no: int, entry: int, staged: dict[int, int], sizes: dict[int, int]) -> bool:
    kind = entry & KIND_MASK
    if kind == STAGED:
        return staged.get(block_no) == entry & SEQ_MASK
    place = unpack_place(entry)
    return kind == STORED and place.offset + RECORD.size < sizes.get(place.segment_no, 0)


def mend_index(store: Store, staged: dict[int, int], doubtful: list[int]) -> int:
    """Fill entries that are missing or doubtful from records and slots; how many stay lost."""
    cut, count = store.cut, store.geometry.block_count
    for block_no in doubtful:
        cut.index.set_stored(block_no, block_no + 1, LOST_ENTRY)
    for number in segment_numbers(cut.segments):
        for found in scan_segment(cut.segments, number, store.files, verify=True):
            if isinstance(found, ScanProblem):
                continue
            place, record = found
            first, end = record.block_no, record.block_no + record.block_count
            if record.generation == cut.generation and end <= count:
                _mend_entries(store, first, end, pack_place(place))
    for block_no, seq in staged.items():
        _mend_entries(store, block_no, block_no + 1, STAGED | seq)
    return sum(entries.count(LOST_ENTRY) for _, entries in cut.index.filled_runs())


def _mend_entries(store: Store, first: int, end: int, entry: int) -> None:
    cut = store.cut
    cut.index.allocate(first, end)
    cut.settled.set_range(first, end)
    cut.changed.set_range(first, end)
    for block_no, present in enumerate(cut.index.get_range(first, end), first):
        if present in (0, LOST_ENTRY):
            cut.index.set_stored(block_no, block_no + 1, entry)


def recount(store: Store, *, records: bool = True) -> None:
    """Take the numbers of status from the maps, and with ``records`` from the segments themselves."""
    cut, control = store.cut, store.control
    control[Counter.SETTLED_BLOCKS] = cut.settled.count()
    control[Counter.CHANGED_BLOCKS] = cut.changed.count()
    control[Counter.RELEASED_BLOCKS] = cut.released.count()
    control[Counter.PRESERVED_BLOCKS] = sum(
        sum(1 for entry in entries if entry) for _, entries in cut.index.filled_runs()
    )
    if not records:
        return
    stored = raw = 0
    for number in segment_numbers(cut.segments):
        for found in scan_segment(cut.segments, number, store.files):
            if not isinstance(found, ScanProblem):
                stored += found[1].payload_bytes
                raw += found[1].raw_bytes
    control[Counter.STORED_BYTES], control[Counter.STORED_RAW_BYTES] = stored, raw


def mark_damaged(store: Store, *, unreadable: bool = False) -> None:
    """The snapshot goes on for what is provably right; with ``unreadable`` nothing is."""
    if store.control.state is State.ACTIVE:
        store.control[Counter.STATE] = State.DAMAGED
    if unreadable:
        store.control[Counter.UNREADABLE] = 1
