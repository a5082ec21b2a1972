"""Squeezing: segments that were written in haste are stored again, well compressed, when there is time.

Their records are read, what is still needed of them goes into new segments in longer runs, the index follows, and
the old segments go. Readers that meet an entry of an old one look at the index again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice

from cow.compact.giveback import GiveBack
from cow.compact.needs import Needs
from cow.compact.records import RecordWriter
from cow.compact.runs import Piece, join
from cow.disk.codec import COMPRESS_WELL, RecordHeader, decode
from cow.disk.cut import Cut
from cow.disk.layout import RECORD_RAW_BYTES, Counter, CutCounter, Place, blocks_in_record, pack_place
from cow.disk.plain import open_plain
from cow.disk.segments import ScanProblem, scan_segment
from cow.disk.store import Store
from cow.errors import Damaged

# Of raw content, as far as records are as long as they may be.
_BYTES_AT_ONCE = 4 << 20


class Squeezer:
    """For one cut, beside its `RecordWriter` and its `GiveBack`; used by the compactor's thread only."""

    def __init__(self, store: Store, cut: Cut, records: RecordWriter, give_back: GiveBack, needs: Needs) -> None:
        self._control, self._files, self._cut = store.control, store.files, cut
        self._records, self._give_back, self._needs = records, give_back, needs
        self._numbers = cut.numbers
        self._block_bytes = store.header.block_bytes
        self._records_at_once = max(1, _BYTES_AT_ONCE // max(self._block_bytes, RECORD_RAW_BYTES))
        # Segments with records that were not compressed well, and where in the first of them squeezing is.
        self._hasty: list[int] = []
        self._scan: Iterator[tuple[Place, RecordHeader] | ScanProblem] | None = None
        self._is_spoiled = False

    def add(self, segments: set[int]) -> None:
        """These segments hold records that were stored in haste."""
        self._hasty += sorted(segments.difference(self._hasty))

    def squeeze(self) -> bool:
        """Compress some of those records again; False when there are none left.

        To be called while nothing waits in the ring. OSError: the store takes no more; what is left stays as it is.
        """
        if not self._hasty or not self._numbers.is_kept:
            return False
        if self._scan is None and self._numbers[CutCounter.RELEASED_BLOCKS]:
            # Soon all of it is given back; a record that is made while its blocks are released would stay.
            return False
        try:
            self._squeeze_some()
        except OSError:
            is_over = self._control[Counter.GENERATION] != self._cut.generation
            self._hasty, self._scan = [], None
            if not is_over:
                raise
        return True

    def _squeeze_some(self) -> None:
        segment_no = self._hasty[0]
        if self._scan is None:
            if segment_no == self._records.segment_no:
                self._records.begin_segment()
            self._scan = scan_segment(self._cut.segments, segment_no, self._files)
        try:
            taken = list(islice(self._scan, self._records_at_once))
        except FileNotFoundError:
            taken = []  # all of it was released
        if taken:
            self._store_again([found for found in taken if not isinstance(found, ScanProblem)])
            return
        self._hasty.pop(0)
        self._scan = None
        if not self._is_spoiled:
            self._cut.segments.find(segment_no).unlink(missing_ok=True)
        self._is_spoiled = False

    def _store_again(self, records: list[tuple[Place, RecordHeader]]) -> None:
        """Store what is still needed of `records` again, in longer runs where neighbours meet."""
        size, index, needs = self._block_bytes, self._cut.index, self._needs
        live: list[Piece] = []
        blocks: dict[int, memoryview] = {}
        dropped: list[RecordHeader] = []
        for place, header in records:
            raw = self._read(place)
            if raw is None:
                self._is_spoiled = True
                continue
            entry = pack_place(place)
            end = header.block_no + header.block_count
            if needs.need_none(header.block_no, end) and entry in index.get_range(header.block_no, end):
                # While it is there: it counts as given back, not as squeezed.
                self._give_back.give_back(header.block_no, end)
                continue
            dropped.append(header)
            for at, block_no in enumerate(range(header.block_no, end)):
                if index.get(block_no) == entry and needs.need(block_no):
                    blocks[block_no] = raw[at * size : (at + 1) * size]
                    live.append((block_no, [entry]))
        runs = join(sorted(live), blocks_in_record(size))
        for run in runs:
            run.raw = b"".join(blocks[block_no] for block_no in range(run.block_no, run.end))
        self._records.store(runs, COMPRESS_WELL)
        for header in dropped:
            self._records.discount(header)

    def _read(self, place: Place) -> memoryview | None:
        """The blocks of a record; None when it is damaged, and then its segment stays."""
        try:
            fd = open_plain(self._cut.segments.find(place.segment_no), os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            return memoryview(
                decode(self._files.pread(fd, place.length, place.offset), seed=self._cut.segments.seed)[1]
            )
        except Damaged:
            return None
        finally:
            os.close(fd)
