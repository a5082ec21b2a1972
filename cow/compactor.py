"""Moving staged blocks into compressed segments, off the write path.

One step takes the oldest committed slots, sorts them by block, joins neighbours to runs, compresses each run
to one record, appends the records, points the index to them, and only then frees the slots. Killed anywhere,
the next compactor does the step again; a record that no entry names is only lost space.

The fuller the ring, the less time goes into compressing: lz4 acceleration first, then raw records. Segments
written in such haste are *squeezed* when there is nothing else to do: their records are compressed again, well,
into new segments, the index follows, and the old segments go. Readers that meet an entry of an old one look at
the index again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from operator import eq

from cow.codec import STORE_RAW, RecordHeader, decode, encode, payload_bytes, slot_checksums, slot_seed
from cow.direct import DirectWriter
from cow.errors import Damaged
from cow.files import Data, Files
from cow.layout import (
    KEPT_STATES,
    LOST_ENTRY,
    NO_GENERATION,
    RECORD_RAW_BYTES,
    STAGED,
    Counter,
    Place,
    pack_place,
)
from cow.segments import ScanProblem, SegmentWriter, remove_segments, scan_segment, segment_path
from cow.store import Cut, Store, open_cut

# Large enough to join neighbours that were written out of order, small enough to free slots steadily.
_STEP_BYTES = 2 << 20
# (share of the ring in use, lz4 acceleration): the last whose share is reached applies.
_WELL = 1
_PACE = ((0.0, _WELL), (0.75, 4), (0.85, 16), (0.95, STORE_RAW))
_WORKERS = 2


def acceleration_for(share: float) -> int:
    """How hard to compress when ``share`` (0 to 1) of the ring waits."""
    chosen = _WELL
    for from_share, acceleration in _PACE:
        if share >= from_share:
            chosen = acceleration
    return chosen


@dataclass(slots=True)
class _Run:
    """Neighbouring blocks, and the index entries that say where they come from."""

    block_no: int
    entries: list[int]
    raw: Data = b""


# The first of some neighbouring blocks, and the index entries of all.
_Piece = tuple[int, list[int]]


def _neighbours(tags: list[int], block_count: int) -> Iterator[tuple[int, int, int]]:
    """``(place in tags, first block, end)`` for slots that follow each other and hold neighbouring blocks."""
    at = 0
    while at < len(tags):
        until = at + 1
        while until < len(tags) and tags[until] == tags[at] + until - at:
            until += 1
        if tags[at] < block_count:
            yield at, tags[at], min(tags[at] + until - at, block_count)
        at = until


class Compactor:
    """Owns the segments and ``FREED_SEQ``; follows the live server from cut to cut."""

    def __init__(self, store: Store) -> None:
        self._store, self._control, self._staging = store, store.control, store.staging
        self._files: Files = store.files
        # After a restart of this process alone, perhaps an older one than the present.
        self._cut: Cut = store.cut
        self._direct = DirectWriter(store.files)
        self._writer = self._new_writer()
        self._follow_cut()
        self._stored_bytes = self._control[Counter.STORED_BYTES]
        self._stored_raw_bytes = self._control[Counter.STORED_RAW_BYTES]
        self._step_slots = max(1, _STEP_BYTES // store.header.block_bytes)
        self._run_blocks = max(1, RECORD_RAW_BYTES // store.header.block_bytes)
        self._buffer = memoryview(bytearray(self._step_slots * store.header.block_bytes))
        self._pool = ThreadPoolExecutor(_WORKERS, "lz4")
        # Segments with records that were not compressed well, and where in the first of them squeezing is.
        self._hasty: list[int] = []
        self._squeezing: Iterator[tuple[Place, RecordHeader] | ScanProblem] | None = None
        self._is_spoiled = False

    def warm(self) -> None:
        """Prepare the ring for the first writes."""
        self._staging.warm()

    @property
    def backlog_slots(self) -> int:
        """Slots that could be moved now."""
        return self._control[Counter.COMMITTED_SEQ] - self._control[Counter.FREED_SEQ]

    @property
    def backlog_share(self) -> float:
        return self.backlog_slots / self._staging.slots

    def step(self) -> int:
        """Move what one step holds; the number of slots freed, 0 when there was nothing to do.

        OSError (ENOSPC, EIO): nothing was freed, STORE_ERRNO says why, and the step can be tried again.
        """
        control = self._control
        self._follow_cut()
        seq = max(control[Counter.FREED_SEQ], control[Counter.CUT_SEQ])
        control[Counter.FREED_SEQ] = seq
        count = min(control[Counter.COMMITTED_SEQ] - seq, self._step_slots)
        if count <= 0:
            return 0
        if control[Counter.STATE] in KEPT_STATES:
            try:
                self._move(seq, count)
            except OSError as error:
                if control[Counter.GENERATION] != self._cut.generation:
                    return self.step()  # the segments of the cut before are gone
                control[Counter.STORE_ERRNO] = error.errno or errno.EIO
                raise
            control[Counter.STORE_ERRNO] = 0
        control[Counter.FREED_SEQ] = seq + count
        return count

    def tidy(self) -> None:
        """Give the space of a snapshot that nobody can read any more back to the disk that it filled."""
        if self._control[Counter.STATE] in KEPT_STATES:
            return
        self._writer.close()
        remove_segments(self._cut.segments)
        self._writer = self._new_writer()

    def _follow_cut(self) -> None:
        generation = self._control[Counter.GENERATION]
        if generation not in (self._cut.generation, NO_GENERATION):
            self._writer.close()
            self._cut = self._open_cut(generation)
            self._writer = self._new_writer()
            self._stored_bytes = self._stored_raw_bytes = 0
            self._hasty, self._squeezing = [], None

    def _new_writer(self) -> SegmentWriter:
        return SegmentWriter(self._cut.segments, self._files, direct=self._direct)

    def _open_cut(self, generation: int) -> Cut:
        store = self._store
        return open_cut(store.path, generation, store.geometry, self._files, writable=True)

    def _move(self, seq: int, count: int) -> None:
        runs = self._collect(seq, count)
        if not runs:
            return
        acceleration = acceleration_for(self.backlog_share)
        for run in runs:
            run.raw = self._gather(run, seq)
        segments = self._store_runs(runs, acceleration)
        if acceleration != _WELL:
            self._hasty += sorted(segments.difference(self._hasty))
        self._publish_sums()

    def _store_runs(self, runs: list[_Run], acceleration: int) -> set[int]:
        """Append a record for each run and point the index to it; the numbers of the segments they are in."""
        records = self._encode_all(runs, acceleration)
        places = self._writer.append(records)
        for run, record, place in zip(runs, records, places, strict=True):
            self._cut.index.replace(run.block_no, run.entries, pack_place(place))
            self._stored_raw_bytes += len(run.raw)
            self._stored_bytes += payload_bytes(record)
        return {place.segment_no for place in places}

    def _publish_sums(self) -> None:
        """Sums of our own, not additions: what a cut reset meanwhile must not get the old cut's numbers for long.

        Before slots are freed: a reader of both numbers may count a block twice, never miss one.
        """
        self._control[Counter.STORED_RAW_BYTES] = self._stored_raw_bytes
        self._control[Counter.STORED_BYTES] = self._stored_bytes

    def _encode_all(self, runs: list[_Run], acceleration: int) -> list[bytes]:
        """The records of ``runs``, in order; lz4 lets go of the interpreter, so halves are made side by side."""
        if acceleration == STORE_RAW or len(runs) < 2 * _WORKERS:
            return self._encode(runs, acceleration)
        share = -(-len(runs) // _WORKERS)
        parts = [runs[start : start + share] for start in range(0, len(runs), share)]
        return [
            record for part in self._pool.map(lambda part: self._encode(part, acceleration), parts) for record in part
        ]

    def _encode(self, runs: list[_Run], acceleration: int) -> list[bytes]:
        generation = self._cut.generation
        return [encode(run.block_no, len(run.entries), generation, run.raw, acceleration) for run in runs]

    def _collect(self, seq: int, count: int) -> list[_Run]:
        """Copy the step's slots and find the runs among the live ones."""
        size = self._staging.block_bytes
        data = self._buffer[: count * size]
        self._staging.read_into(data, seq)
        noted = self._staging.checksums(seq, count)
        sums = slot_checksums(data, size, slot_seed(self._cut.generation, seq))
        index, released = self._cut.index, self._cut.released
        live: list[_Piece] = []
        for at, first, end in _neighbours(self._staging.tags(seq, count), index.block_count):
            entries, until = list(range(STAGED | seq + at, (STAGED | seq + at) + end - first)), at + end - first
            is_whole = sums[at:until] == noted[at:until] and index.get_range(first, end) == entries
            if is_whole and not released.any_set(first, end):
                live.append((first, entries))
                continue
            for block_no, entry, is_right in zip(
                range(first, end), entries, map(eq, sums[at:until], noted[at:until]), strict=True
            ):
                if index.get(block_no) != entry or released.get(block_no):
                    continue
                if is_right:
                    live.append((block_no, [entry]))
                else:
                    index.replace(block_no, [entry], LOST_ENTRY)
        live.sort()
        return self._join(live)

    def _join(self, live: list[_Piece]) -> list[_Run]:
        """Runs of neighbours, of bounded length, from pieces in order."""
        runs: list[_Run] = []
        for first, entries in live:
            at = 0
            while at < len(entries):
                last = runs[-1] if runs else None
                if last and first + at == last.block_no + len(last.entries) and len(last.entries) < self._run_blocks:
                    room = self._run_blocks - len(last.entries)
                    last.entries += entries[at : at + room]
                else:
                    room = self._run_blocks
                    runs.append(_Run(first + at, entries[at : at + room]))
                at += room
        return runs

    def _gather(self, run: _Run, base_seq: int) -> memoryview:
        """The raw bytes of a run; without a copy where its slots lie side by side."""
        size, base = self._staging.block_bytes, STAGED | base_seq
        first, count = run.entries[0], len(run.entries)
        if run.entries == list(range(first, first + count)):
            return self._buffer[(first - base) * size : (first - base + count) * size]
        slots = ((entry - base) * size for entry in run.entries)
        return memoryview(b"".join(self._buffer[at : at + size] for at in slots))

    # --- squeezing -------------------------------------------------------------------------------------------

    def squeeze(self) -> bool:
        """Compress some records that were stored in haste again; False when there are none left.

        To be called while nothing waits in the ring. OSError: the store takes no more; what is left stays as it is.
        """
        self._follow_cut()
        if not self._hasty or self._control[Counter.STATE] not in KEPT_STATES:
            return False
        if self._squeezing is None and self._control[Counter.RELEASED_BLOCKS]:
            # Soon all of it is given back; a record that is made while its blocks are released would stay.
            return False
        try:
            self._squeeze_some()
        except OSError:
            is_over = self._control[Counter.GENERATION] != self._cut.generation
            self._hasty, self._squeezing = [], None
            if not is_over:
                raise
        return True

    def _squeeze_some(self) -> None:
        segment_no = self._hasty[0]
        if self._squeezing is None:
            if segment_no == self._writer.segment_no:
                self._writer.begin_segment()
            self._squeezing = scan_segment(self._cut.segments, segment_no, self._files)
        try:
            taken = list(islice(self._squeezing, self._step_slots // self._run_blocks * 2))
        except FileNotFoundError:
            taken = []  # all of it was released
        if taken:
            self._squeeze_records([found for found in taken if not isinstance(found, ScanProblem)])
            return
        self._hasty.pop(0)
        self._squeezing = None
        # The highest number stays: the next writer of this cut must not use it again.
        if not self._is_spoiled and segment_no < self._writer.segment_no:
            segment_path(self._cut.segments, segment_no).unlink(missing_ok=True)
        self._is_spoiled = False

    def _squeeze_records(self, records: list[tuple[Place, RecordHeader]]) -> None:
        """Store what is still needed of ``records`` again, in longer runs where neighbours meet."""
        size, index, released = self._staging.block_bytes, self._cut.index, self._cut.released
        live: list[_Piece] = []
        blocks: dict[int, memoryview] = {}
        dropped: list[tuple[Place, RecordHeader]] = []
        for place, header in records:
            raw = self._read_record(place)
            if released.all_set(header.block_no, header.block_no + header.block_count):
                continue  # the live server gives it back, and counts that itself
            if raw is None:
                self._is_spoiled = True
                continue
            dropped.append((place, header))
            entry = pack_place(place)
            for at, block_no in enumerate(range(header.block_no, header.block_no + header.block_count)):
                if index.get(block_no) == entry and not released.get(block_no):
                    blocks[block_no] = raw[at * size : (at + 1) * size]
                    live.append((block_no, [entry]))
        runs = self._join(sorted(live))
        for run in runs:
            run.raw = b"".join(blocks[block_no] for block_no in range(run.block_no, run.block_no + len(run.entries)))
        self._store_runs(runs, _WELL)
        for place, header in dropped:
            if not self._was_given_back(place, header):
                self._stored_raw_bytes -= header.raw_bytes
                self._stored_bytes -= header.payload_bytes
        self._publish_sums()

    def _was_given_back(self, place: Place, header: RecordHeader) -> bool:
        """Whether the live server has freed this record since it was read, and counts it."""
        released = self._cut.released.all_set(header.block_no, header.block_no + header.block_count)
        return released and self._read_record(place) is None

    def _read_record(self, place: Place) -> memoryview | None:
        """The blocks of a record; None when it is damaged, or was given back this moment: its segment stays."""
        try:
            fd = os.open(segment_path(self._cut.segments, place.segment_no), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return memoryview(decode(self._files.pread(fd, place.length, place.offset))[1])
        except Damaged:
            return None
        finally:
            os.close(fd)

    def drain(self) -> None:
        """Move everything that is committed; OSError when the store cannot take it."""
        while self.step():
            pass

    def trim(self) -> None:
        """Give back the resident memory of the mappings."""
        self._cut.trim()

    def close(self) -> None:
        self._pool.shutdown()
        self._writer.close()
