"""Reading what one cut preserved: from the ring and from segments, checked, while it may move at any instant."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from cow.disk.blocks import Kind, Run, classify
from cow.disk.codec import slot_checksums, slot_seed
from cow.disk.cut import Cut
from cow.disk.layout import SEQ_MASK
from cow.disk.segments import SegmentReader
from cow.disk.store import Store
from cow.errors import BlockReleased, Damaged, WouldWait

_RELEASED: Final = Kind.RELEASED
_FREE: Final = Kind.FREE
_STAGED: Final = Kind.STAGED
_STORED: Final = Kind.STORED
_LOST: Final = Kind.LOST
# Of what one reader has decompressed: as much as the largest request of a view.
_CACHED_BYTES: Final = 1 << 20
# As long as the largest request of a view.
_ZEROS = memoryview(bytes(1 << 20))


# Generation, first block, number of blocks, content.
Record = tuple[int, int, int, memoryview]


class Records:
    """What a reader has decompressed last: neighbouring requests often end and begin inside one record. Whatever cuts
    they are from, for the index entries of one store name different records."""

    def __init__(self) -> None:
        self._found: OrderedDict[int, Record] = OrderedDict()
        self._bytes = 0

    def get(self, entry: int) -> Record | None:
        return self._found.get(entry)

    def put(self, entry: int, record: Record) -> None:
        self._found[entry] = record
        self._bytes += len(record[3])
        while self._bytes > _CACHED_BYTES and len(self._found) > 1:
            _, (*_, raw) = self._found.popitem(last=False)
            self._bytes -= len(raw)


class Desk:
    """What one reader has at hand, in whichever of the cuts that it looks through; used by one thread at a time.

    `may_wait`: else WouldWait where the disk would have to be waited for.
    """

    def __init__(self) -> None:
        self.may_wait = True
        self.records = Records()
        self._scratch = memoryview(bytearray(0))

    def scratch(self, length: int) -> memoryview:
        if len(self._scratch) < length:
            self._scratch = memoryview(bytearray(length))
        return self._scratch[:length]

    def clear(self) -> None:
        """It is not used for a while."""
        self.records = Records()
        self._scratch = memoryview(bytearray(0))


class PreservedReader:
    """What `cut` has of its blocks, for its own readers, or (`own` is False) for those of a cut before it."""

    def __init__(self, store: Store, cut: Cut, desk: Desk, *, own: bool) -> None:
        self.cut, self._own, self._desk = cut, own, desk
        self.generation, self.numbers, self.settled = cut.generation, cut.numbers, cut.settled.file
        self.geometry, self._staging = store.geometry, store.staging
        self._segments = SegmentReader(cut.segments, store.files, store.open_segments)

    def explain(self, first: int, end: int) -> Iterable[Run]:
        """What explains the blocks, here: OWED is what this cut does not have."""
        return classify(self.cut, first, end, own=self._own)

    def read(self, view: memoryview, offset: int, run: Run) -> None:
        """Place the blocks of a run, which are not owed, in `view`, which begins at `offset` of the image."""
        self._read_settled(view, offset, run)

    def _read_settled(self, view: memoryview, offset: int, run: Run) -> None:
        kind, first, end, entry = run
        if kind is _STORED:
            self._read_stored(view, offset, first, end, entry)
        elif kind is _STAGED:
            self._read_staged(view, offset, first, end, entry)
        elif kind is _FREE:
            # Also what was preserved before that was known: all free blocks look the same.
            _, at, count = self.geometry.overlap(first, end, offset, len(view))
            view[at : at + count] = _ZEROS[:count] if count <= len(_ZEROS) else bytes(count)
        elif kind is _RELEASED:
            raise BlockReleased(first)
        elif kind is _LOST:
            raise Damaged("its preserved content is lost", first)
        else:
            raise Damaged("the index lost the block", first)

    def _read_again(self, view: memoryview, offset: int, first: int, end: int) -> None:
        """What was in the side buffer has moved, or was released."""
        for run in self.explain(first, end):
            self._read_settled(view, offset, run)

    def _read_staged(self, view: memoryview, offset: int, first: int, end: int, first_entry: int) -> None:
        seq = first_entry & SEQ_MASK
        staging, size = self._staging, self.geometry.block_bytes
        raw = self._desk.scratch((end - first) * size)
        if self._desk.may_wait:
            staging.read_into(raw, seq)
        elif not staging.try_read_into(raw, seq):
            raise WouldWait
        noted = staging.checksums(seq, end - first)
        entries = self.cut.index.get_range(first, end)
        actual = slot_checksums(raw, size, slot_seed(self.cut.generation, seq))
        if actual == noted and entries == list(range(first_entry, first_entry + end - first)):
            self._place(view, offset, first, end, raw)
            return
        for block_no, entry in enumerate(entries, first):
            at = block_no - first
            if entry != first_entry + at:
                self._read_again(view, offset, block_no, block_no + 1)
            elif actual[at] != noted[at]:
                if self._is_released(block_no):
                    raise BlockReleased(block_no)  # its slot was used again
                raise Damaged("the staged block's checksum does not fit", block_no)
            else:
                self._place(view, offset, block_no, block_no + 1, raw[at * size : (at + 1) * size])

    def _read_stored(self, view: memoryview, offset: int, first: int, end: int, entry: int) -> None:
        try:
            block_no, count, raw = self._record(entry, first)
            if not block_no <= first < end <= block_no + count:
                raise Damaged("the index points to a record of other blocks", first)
        except Damaged:
            # Gone is no damage when the block was released, or its record was squeezed into another place.
            if self._is_released(first):
                raise BlockReleased(first) from None
            if self.cut.index.get_range(first, end) == [entry] * (end - first):
                raise
            self._read_again(view, offset, first, end)
            return
        self._place(view, offset, first, end, raw[(first - block_no) * self.geometry.block_bytes :])

    def _is_released(self, block_no: int) -> bool:
        return self._own and self.cut.released.get(block_no)

    def _record(self, entry: int, block_no: int) -> tuple[int, int, memoryview]:
        records = self._desk.records
        cached = records.get(entry)
        if cached is None:
            header, raw = self._segments.read(entry, block_no, may_wait=self._desk.may_wait)
            cached = header.generation, header.block_no, header.block_count, memoryview(raw)
            records.put(entry, cached)
        elif not self.cut.segments.has(cached[0]):
            raise Damaged("the index points to a record of another snapshot", block_no)
        return cached[1:]

    def _place(self, view: memoryview, offset: int, first: int, end: int, raw: memoryview) -> None:
        skip, at, count = self.geometry.overlap(first, end, offset, len(view))
        if skip + count > len(raw):
            raise Damaged("the record is shorter than its blocks", first)
        view[at : at + count] = raw[skip : skip + count]
