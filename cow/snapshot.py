"""Reading the snapshot: each block from the side buffer or from the image, without locks.

The live server may preserve, the compactor may move and the imager may release any block at any instant
meanwhile. What makes a plain read right:

1.  An owed block is read from the image, then `settled` is looked at again. If it was set meanwhile, the
    bytes may be new ones: the block is taken from the side buffer instead.
2.  A staged block is copied, then its index entry is looked at again. If it is the same, the slot was not
    used again before the copy ended; if not, the block has moved to a segment.
3.  Everything from the side buffer has a checksum. A wrong one is an error, never bytes.
4.  `released`, the snapshot's state and the cut are looked at last: each of them is stored before the
    first write that takes something away from this read.

A block goes owed -> staged -> segment, and its record may be squeezed into another segment once, so every step
is repeated a few times at most.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from cow.disk.blocks import Kind, Run, classify
from cow.disk.codec import slot_checksums, slot_seed
from cow.disk.image import Image
from cow.disk.layout import KEPT_STATES, SEQ_MASK, Counter, CutCounter, unpack_missing
from cow.disk.segments import SegmentReader
from cow.disk.store import Store
from cow.errors import BlockReleased, Damaged, SnapshotEnded, SnapshotLost, WouldWait
from cow.faults import missing_pages

# Places in the pages as plain numbers: to look a member of an enumeration up takes longer than to use it.
_GENERATION: Final = Counter.GENERATION.value
_STATE: Final = CutCounter.STATE.value
_UNREADABLE: Final = CutCounter.UNREADABLE.value
_FREE_BLOCKS: Final = CutCounter.FREE_BLOCKS.value
_OWED: Final = Kind.OWED
_RELEASED: Final = Kind.RELEASED
_FREE: Final = Kind.FREE
_STAGED: Final = Kind.STAGED
_STORED: Final = Kind.STORED
_LOST: Final = Kind.LOST
# Neighbouring requests often end and begin inside one record; it is decompressed once.
_CACHED_RECORDS = 16
# As long as the largest request of a view.
_ZEROS = memoryview(bytes(1 << 20))


class SnapshotReader:
    """The frozen image of one cut; one reader serves one thread at a time."""

    def __init__(self, store: Store, image: Image) -> None:
        self._store, self._image, self._cut = store, image, store.cut
        self._control, self._numbers, self._staging = store.control, store.cut.numbers, store.staging
        self._generation, self._settled = store.cut.generation, store.cut.settled.file
        self._end = store.end_of(self._generation)
        self.geometry = store.geometry
        self._segments = SegmentReader(store.cut.segments, store.files)
        self._records: OrderedDict[int, tuple[int, int, memoryview]] = OrderedDict()
        self._scratch = memoryview(bytearray(0))
        self._may_wait = True

    def check(self) -> None:
        """Raise what a read now would raise for the snapshot as a whole."""
        numbers = self._numbers
        generation, state, is_unreadable = self._control[_GENERATION], numbers[_STATE], numbers[_UNREADABLE]
        # After all of it was looked at, here and by the read: any of it may have been zeros in the place of what is
        # gone. What follows from all other maps is an error then; from this one, that the image is read.
        if not self._settled.has_its_size or (missing_pages[0] and not is_unreadable and not self._store.is_whole):
            raise Damaged("files of it were cut short or cannot be read")
        if generation != self._generation:
            raise SnapshotEnded("a newer cut replaced this snapshot")
        if state not in KEPT_STATES:
            raise SnapshotLost(f"the snapshot is {numbers.state.name.lower()}")
        if is_unreadable or self._end[0] == self._generation:
            raise SnapshotLost("the snapshot's store is damaged as a whole")

    def try_read(self, view: memoryview, offset: int) -> bool:
        """`read_into`, unless the disk would have to be waited for: then False, and `view` holds nothing."""
        self._may_wait = False
        try:
            self.read_into(view, offset)
        except WouldWait:
            return False
        finally:
            self._may_wait = True
        return True

    def reads_as_zeros(self, offset: int, length: int) -> bool:
        """Whether a read would find nothing but free blocks, so that it can be answered without one.

        SnapshotLost, SnapshotEnded: as for `read_into`.
        """
        first, end = self.geometry.span(offset, length)
        # Most reads are not of free blocks, and then it has to be quick.
        if not self._numbers[_FREE_BLOCKS] or not self._cut.free.all_set(first, end):
            return False
        is_free = all(kind is _FREE for kind, *_ in classify(self._cut, first, end))
        if is_free:
            self.check()
        return is_free

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`, clipped at the end of the image."""
        buffer = bytearray(self.geometry.clip(offset, length))
        if buffer:
            self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the snapshot's bytes at `offset`.

        Damaged, SnapshotLost, SnapshotEnded, BlockReleased or OSError: `view` holds nothing of use.
        """
        first, end = self.geometry.span(offset, len(view))
        try:
            for run in classify(self._cut, first, end):
                if run[0] is _OWED:
                    self._read_owed(view, offset, run[1], run[2])
                else:
                    self._read_settled(view, offset, run)
            is_released = self._cut.released.any_set(first, end)
        finally:
            # Damage found in a snapshot that is over is no damage: say that it is over.
            self.check()
        if is_released:
            raise BlockReleased(first)

    def _read_owed(self, view: memoryview, offset: int, first: int, end: int) -> None:
        skip, at, count = self.geometry.overlap(first, end, offset, len(view))
        start, _ = self.geometry.extent(first, end)
        owed = [view[at : at + count]]
        if self._may_wait:
            self._image.read_into(owed, start + skip)
        elif not self._image.try_read_into(owed, start + skip):
            raise WouldWait
        for run in classify(self._cut, first, end):
            if run[0] is _OWED:
                self._check_there(run[1], run[2])
            else:
                self._read_settled(view, offset, run)

    def _check_there(self, first: int, end: int) -> None:
        """What the image lost when it was cut short may read as zeros now."""
        missing_bytes = unpack_missing(self._numbers[CutCounter.MISSING_BYTES])
        if missing_bytes:
            start, length = self.geometry.extent(first, end)
            if start + length > self.geometry.image_bytes - missing_bytes:
                raise Damaged("the image was cut short", first)

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
        for run in classify(self._cut, first, end):
            self._read_settled(view, offset, run)

    def _read_staged(self, view: memoryview, offset: int, first: int, end: int, first_entry: int) -> None:
        seq = first_entry & SEQ_MASK
        staging, size = self._staging, self.geometry.block_bytes
        raw = self._scratch_of((end - first) * size)
        if self._may_wait:
            staging.read_into(raw, seq)
        elif not staging.try_read_into(raw, seq):
            raise WouldWait
        noted = staging.checksums(seq, end - first)
        entries = self._cut.index.get_range(first, end)
        actual = slot_checksums(raw, size, slot_seed(self._cut.generation, seq))
        if actual == noted and entries == list(range(first_entry, first_entry + end - first)):
            self._place(view, offset, first, end, raw)
            return
        for block_no, entry in enumerate(entries, first):
            at = block_no - first
            if entry != first_entry + at:
                self._read_again(view, offset, block_no, block_no + 1)
            elif actual[at] != noted[at]:
                if self._cut.released.get(block_no):
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
            if self._cut.released.get(first):
                raise BlockReleased(first) from None
            if self._cut.index.get_range(first, end) == [entry] * (end - first):
                raise
            self._read_again(view, offset, first, end)
            return
        self._place(view, offset, first, end, raw[(first - block_no) * self.geometry.block_bytes :])

    def _record(self, entry: int, block_no: int) -> tuple[int, int, memoryview]:
        cached = self._records.get(entry)
        if cached is None:
            header, raw = self._segments.read(entry, block_no, may_wait=self._may_wait)
            cached = header.block_no, header.block_count, memoryview(raw)
            self._records[entry] = cached
            if len(self._records) > _CACHED_RECORDS:
                self._records.popitem(last=False)
        return cached

    def _place(self, view: memoryview, offset: int, first: int, end: int, raw: memoryview) -> None:
        skip, at, count = self.geometry.overlap(first, end, offset, len(view))
        if skip + count > len(raw):
            raise Damaged("the record is shorter than its blocks", first)
        view[at : at + count] = raw[skip : skip + count]

    def _scratch_of(self, length: int) -> memoryview:
        if len(self._scratch) < length:
            self._scratch = memoryview(bytearray(length))
        return self._scratch[:length]

    def trim(self) -> None:
        """Give back the resident memory of the mappings."""
        self._cut.trim()

    def close(self) -> None:
        self._segments.close()
