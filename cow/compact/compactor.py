"""Moving staged blocks into compressed segments, off the write path.

One step takes the oldest committed slots, sorts them by block, joins neighbours to runs, compresses each run
to one record, appends the records, points the index to them, and only then frees the slots. Killed anywhere,
the next compactor does the step again; a record that no entry names is only lost space.

The fuller the ring, the less time goes into compressing: lz4 acceleration first, then raw records. Segments
written in such haste are *squeezed* when there is nothing else to do.
"""

from __future__ import annotations

import contextlib
import errno
from operator import eq

from cow.compact.followed import Followed
from cow.compact.giveback import GiveBack
from cow.compact.needs import Needs
from cow.compact.records import Encoder, RecordWriter
from cow.compact.released import Released
from cow.compact.runs import Piece, Run, find_neighbours, join
from cow.compact.squeeze import Squeezer
from cow.disk.codec import COMPRESS_WELL, STORE_RAW, slot_checksums, slot_seed
from cow.disk.cut import Cut
from cow.disk.direct import DirectWriter
from cow.disk.layout import LOST_ENTRY, STAGED, Counter, CutCounter, blocks_in_record
from cow.disk.store import Store

# Large enough to join neighbours that were written out of order, small enough to free slots steadily.
_STEP_BYTES = 2 << 20
# (share of the ring in use, lz4 acceleration): the last whose share is reached applies.
_PACE = ((0.0, COMPRESS_WELL), (0.75, 4), (0.85, 16), (0.95, STORE_RAW))


def acceleration_for(share: float) -> int:
    """How hard to compress when `share` (0 to 1) of the ring waits."""
    chosen = COMPRESS_WELL
    for from_share, acceleration in _PACE:
        if share >= from_share:
            chosen = acceleration
    return chosen


class Compactor:
    """Owns `FREED_SEQ`, and the segments: nobody else removes anything of them. Follows the live server from cut to
    cut.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._control, self._staging = store, store.control, store.staging
        self._encoder, self._direct = Encoder(), DirectWriter(store.files)
        self._followed = Followed(store)
        self._released = Released(store, self._followed)
        self._records = self._new_records()
        self._begin()
        self._step_slots = max(1, _STEP_BYTES // store.header.block_bytes)
        self._buffer = memoryview(bytearray(self._step_slots * store.header.block_bytes))

    def warm(self) -> None:
        """Prepare the ring for the first writes; one that cannot be read is no reason to end."""
        with contextlib.suppress(OSError):
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
        committed_seq = self._committed_seq()
        numbers = self._cut.numbers
        seq = max(control[Counter.FREED_SEQ], numbers[CutCounter.FIRST_SEQ])
        control[Counter.FREED_SEQ] = seq
        count = min(committed_seq - seq, self._step_slots)
        if count <= 0:
            # Those of cuts that are gone were passed by: perhaps it is a later one's turn.
            return self.step() if seq >= self._followed.end_seq else 0
        if numbers.is_kept:
            try:
                self._move(seq, count)
            except OSError as error:
                if not self._followed.is_present:
                    return self.step()  # the segments of the cut may be gone
                numbers[CutCounter.STORE_ERRNO] = error.errno or errno.EIO
                raise
            numbers[CutCounter.STORE_ERRNO] = 0
        # Else a slot would be used again that is being filled. No generation: the page is gone.
        assert seq + count <= committed_seq or not control[Counter.GENERATION]
        control[Counter.FREED_SEQ] = seq + count
        return count

    def tidy(self) -> None:
        """Give the space of snapshots that nobody can read any more back to the disk that they filled: when the
        newest is lost, or was deleted as the last, there is no other."""
        self._follow_cut()
        if self._followed.later is None and not self._cut.numbers.is_kept:
            self._records.remove_all()
            self._followed.remove_needless()

    def _committed_seq(self) -> int:
        """Slots below are committed, and of the cut that is followed, or of one that nobody needs."""
        while True:
            self._follow_cut()
            committed_seq = self._control[Counter.COMMITTED_SEQ]
            # Else some may be of a cut that began in between: freed in the name of this one they would be lost.
            if self._followed.is_present:
                return min(committed_seq, self._followed.end_seq)
            if self._followed.is_half_told:
                # The next cut is just being taken; who takes it may have been killed.
                return self._control[Counter.FREED_SEQ]

    @property
    def _cut(self) -> Cut:
        return self._followed.cut

    def _follow_cut(self) -> None:
        before = self._cut
        if self._followed.follow():
            if self._cut is before:
                # What the one before it needs may be less than it was.
                self._needs.served = self._followed.served
                self._released.look_at(self._cut.generation)
                return
            self._records.close()
            self._records = self._new_records()
            self._begin()

    def _new_records(self) -> RecordWriter:
        return RecordWriter(self._store, self._cut, self._encoder, self._direct)

    def _begin(self) -> None:
        """With what is released and squeezed of the cut."""
        self._needs = Needs(self._cut.released, self._followed.served)
        self._released.look_at(self._cut.generation)
        give_back = GiveBack(self._store, self._cut, self._needs)
        self._squeezer = Squeezer(self._store, self._cut, self._records, give_back, self._needs)

    def _move(self, seq: int, count: int) -> None:
        runs = self._collect(seq, count)
        if not runs:
            return
        acceleration = acceleration_for(self.backlog_share)
        for run in runs:
            run.raw = self._gather(run, seq)
        segments = self._records.store(runs, acceleration)
        if acceleration != COMPRESS_WELL:
            self._squeezer.add(segments)

    def _collect(self, seq: int, count: int) -> list[Run]:
        """Copy the step's slots and find the runs among the live ones."""
        size = self._staging.block_bytes
        data = self._buffer[: count * size]
        self._staging.read_into(data, seq)
        noted = self._staging.checksums(seq, count)
        sums = slot_checksums(data, size, slot_seed(self._cut.generation, seq))
        index, needs = self._cut.index, self._needs
        live: list[Piece] = []
        for at, first, end in find_neighbours(self._staging.tags(seq, count), index.block_count):
            entries, until = list(range(STAGED | seq + at, (STAGED | seq + at) + end - first)), at + end - first
            is_whole = sums[at:until] == noted[at:until] and index.get_range(first, end) == entries
            if is_whole and needs.need_all(first, end):
                live.append((first, entries))
                continue
            for block_no, entry, is_right in zip(
                range(first, end), entries, map(eq, sums[at:until], noted[at:until]), strict=True
            ):
                if index.get(block_no) != entry or not needs.need(block_no):
                    continue
                if is_right:
                    live.append((block_no, [entry]))
                else:
                    self._cut.numbers[CutCounter.SPOILT_BLOCKS] += 1
                    index.replace(block_no, [entry], LOST_ENTRY)
        live.sort()
        return join(live, blocks_in_record(size))

    def _gather(self, run: Run, base_seq: int) -> memoryview:
        """The raw bytes of a run; without a copy where its slots lie side by side."""
        size, base = self._staging.block_bytes, STAGED | base_seq
        first, count = run.entries[0], len(run.entries)
        if run.entries == list(range(first, first + count)):
            return self._buffer[(first - base) * size : (first - base + count) * size]
        slots = ((entry - base) * size for entry in run.entries)
        return memoryview(b"".join(self._buffer[at : at + size] for at in slots))

    def squeeze(self) -> bool:
        """Compress some records that were stored in haste again; see `Squeezer.squeeze`."""
        self._follow_cut()
        return self._squeezer.squeeze()

    def give_back(self) -> bool:
        """Give the space of some released records back to the disk; False when there are none."""
        self._follow_cut()
        return self._released.give_back()

    @property
    def is_done(self) -> bool:
        """Whether nothing waits to be moved, and nothing was released since `give_back` last found nothing."""
        return not self.backlog_slots and self._released.is_done

    def drain(self) -> None:
        """Move everything that is committed; OSError when the store cannot take it."""
        while self.step():
            pass

    def trim(self) -> None:
        """Give back the resident memory of the mappings."""
        self._cut.trim()

    def close(self) -> None:
        self._encoder.close()
        self._records.close()
        self._released.close()
        self._followed.close()
