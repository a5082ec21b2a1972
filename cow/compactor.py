"""Moving staged blocks into compressed segments, off the write path.

One step takes the oldest committed slots, sorts them by block, joins neighbours to runs, compresses each run
to one record, appends the records, points the index to them, and only then frees the slots. Killed anywhere,
the next compactor does the step again; a record that no entry names is only lost space.

The fuller the ring, the less time goes into compressing: lz4 acceleration first, then raw records.
"""

from __future__ import annotations

import errno
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cow.codec import STORE_RAW, encode, payload_bytes, slot_checksums, slot_seed
from cow.files import Files
from cow.layout import (
    KEPT_STATES,
    LOST_ENTRY,
    NO_GENERATION,
    RECORD_RAW_BYTES,
    STAGED,
    Counter,
    pack_place,
)
from cow.segments import SegmentWriter, remove_segments
from cow.store import Cut, Store, open_cut

# Large enough to join neighbours that were written out of order, small enough to free slots steadily.
_STEP_BYTES = 2 << 20
# (share of the ring in use, lz4 acceleration): the last whose share is reached applies.
_PACE = ((0.0, 1), (0.5, 4), (0.7, 16), (0.9, STORE_RAW))
_WORKERS = 2


def acceleration_for(share: float) -> int:
    """How hard to compress when ``share`` (0 to 1) of the ring waits."""
    chosen = _PACE[0][1]
    for from_share, acceleration in _PACE:
        if share >= from_share:
            chosen = acceleration
    return chosen


@dataclass(slots=True)
class _Run:
    """Neighbouring blocks, where they lie in the step's buffer, and the slots they came from."""

    block_no: int
    seqs: list[int]


class Compactor:
    """Owns the segments and ``FREED_SEQ``; follows the live server from cut to cut."""

    def __init__(self, store: Store) -> None:
        self._store, self._control, self._staging = store, store.control, store.staging
        self._files: Files = store.files
        # After a restart of this process alone, perhaps an older one than the present.
        self._cut: Cut = store.cut
        self._writer = SegmentWriter(self._cut.segments, store.files)
        self._follow_cut()
        self._stored_bytes = self._control[Counter.STORED_BYTES]
        self._stored_raw_bytes = self._control[Counter.STORED_RAW_BYTES]
        self._step_slots = max(1, _STEP_BYTES // store.header.block_bytes)
        self._run_blocks = max(1, RECORD_RAW_BYTES // store.header.block_bytes)
        self._buffer = memoryview(bytearray(self._step_slots * store.header.block_bytes))
        self._pool = ThreadPoolExecutor(_WORKERS, "lz4")

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
        self._writer = SegmentWriter(self._cut.segments, self._files)

    def _follow_cut(self) -> None:
        generation = self._control[Counter.GENERATION]
        if generation not in (self._cut.generation, NO_GENERATION):
            self._writer.close()
            self._cut = self._open_cut(generation)
            self._writer = SegmentWriter(self._cut.segments, self._files)
            self._stored_bytes = self._stored_raw_bytes = 0

    def _open_cut(self, generation: int) -> Cut:
        store = self._store
        return open_cut(store.path, generation, store.geometry, self._files, writable=True)

    def _move(self, seq: int, count: int) -> None:
        runs = self._collect(seq, count)
        if not runs:
            return
        acceleration = acceleration_for(self.backlog_share)
        jobs = [(run, self._gather(run, seq), acceleration) for run in runs]
        records = list(self._pool.map(self._encode, jobs)) if acceleration else [self._encode(job) for job in jobs]
        places = self._writer.append(records)
        for run, place in zip(runs, places, strict=True):
            self._cut.index.replace_staged(run.block_no, run.seqs, pack_place(place))
        control = self._control
        # Sums of our own, not additions: what a cut reset meanwhile must not get the old cut's numbers for long.
        self._stored_raw_bytes += sum(len(raw) for _, raw, _ in jobs)
        self._stored_bytes += sum(map(payload_bytes, records, (raw for _, raw, _ in jobs)))
        # Before the slots are freed: a reader of both numbers may count a block twice, never miss one.
        control[Counter.STORED_RAW_BYTES] = self._stored_raw_bytes
        control[Counter.STORED_BYTES] = self._stored_bytes

    def _collect(self, seq: int, count: int) -> list[_Run]:
        """Copy the step's slots and find the runs among the live ones."""
        size = self._staging.block_bytes
        data = self._buffer[: count * size]
        self._staging.read_into(data, seq)
        noted = self._staging.checksums(seq, count)
        sums = slot_checksums(data, size, slot_seed(self._cut.generation, seq))
        index, released = self._cut.index, self._cut.released
        live: list[tuple[int, int]] = []
        for at, block_no in enumerate(self._staging.tags(seq, count)):
            number = seq + at
            if block_no >= index.block_count:
                continue
            if index.get(block_no) != STAGED | number or released.get(block_no):
                continue
            if sums[at] != noted[at]:
                index.replace_staged(block_no, [number], LOST_ENTRY)
                continue
            live.append((block_no, number))
        live.sort()
        return self._join(live)

    def _join(self, live: list[tuple[int, int]]) -> list[_Run]:
        runs: list[_Run] = []
        for block_no, number in live:
            last = runs[-1] if runs else None
            if last and block_no == last.block_no + len(last.seqs) and len(last.seqs) < self._run_blocks:
                last.seqs.append(number)
            else:
                runs.append(_Run(block_no, [number]))
        return runs

    def _gather(self, run: _Run, base_seq: int) -> memoryview:
        """The raw bytes of a run; without a copy where its slots lie side by side."""
        size = self._staging.block_bytes
        first, count = run.seqs[0] - base_seq, len(run.seqs)
        if run.seqs[-1] - run.seqs[0] == count - 1 and run.seqs == list(range(run.seqs[0], run.seqs[0] + count)):
            return self._buffer[first * size : (first + count) * size]
        slots = ((number - base_seq) * size for number in run.seqs)
        return memoryview(b"".join(self._buffer[at : at + size] for at in slots))

    def _encode(self, job: tuple[_Run, memoryview, int]) -> bytes:
        run, raw, acceleration = job
        return encode(run.block_no, len(run.seqs), self._cut.generation, raw, acceleration)

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
