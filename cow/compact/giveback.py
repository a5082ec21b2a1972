"""Giving space back: records of which every block is released become holes, whole segments of them go.

Nobody reads a record whose blocks are all released, nor one of a cut that was merged which no entry names. Only whole
pages can become holes, so neighbouring records are joined first, and what shares a page with others is overwritten
with zeros: the last to be freed takes the page along.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from cow.compact.needs import Needs
from cow.disk.codec import RecordHeader, parse_header
from cow.disk.cut import Cut
from cow.disk.files import PAGE_BYTES
from cow.disk.layout import (
    ENTRY_BYTES,
    KIND_MASK,
    LOST_ENTRY,
    RECORD,
    STORED,
    Counter,
    CutCounter,
    Durability,
    Place,
    pack_place,
    unpack_place,
)
from cow.disk.plain import open_plain
from cow.disk.segments import ScanProblem, scan_segment
from cow.disk.store import Store
from cow.errors import Damaged

_SECTOR_BYTES = 512
# A segment of which no more than this share, or this much, is left on the disk is looked through.
_WORTH_A_LOOK, _LITTLE_BYTES = 4, 1 << 20
# So few blocks at once, each with a record of its own at worst, that staged ones do not wait for long.
_PIECE_BLOCKS = 1 << 10


class GiveBack:
    """Frees the released records of one cut; used by the compactor's thread only."""

    def __init__(self, store: Store, cut: Cut, needs: Needs) -> None:
        self._control, self._files, self._cut, self._needs = store.control, store.files, cut, needs
        self._is_power = store.header.durability is Durability.POWER

    def pieces(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """What is released of these blocks, a piece at a time, where the index has anything: most of a large range
        is a hole."""
        return (piece for run in self._cut.released.set_runs(first, end) for piece in self._pieces_of(*run))

    def _pieces_of(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        for offset, length in self._cut.index.file.data_ranges(first * ENTRY_BYTES, end * ENTRY_BYTES):
            high = (offset + length) // ENTRY_BYTES
            for low in range(offset // ENTRY_BYTES, high, _PIECE_BLOCKS):
                yield low, min(low + _PIECE_BLOCKS, high)

    def give_back(self, first: int, end: int) -> None:
        """Free the records of the released blocks `first` to `end`. What the disk does not take back stays taken
        until the snapshot ends, and nothing else is wrong."""
        # By offset: a record whose blocks come in two pieces of the range is found twice.
        found: dict[int, dict[int, tuple[Place, int]]] = {}
        with contextlib.ExitStack() as opened:
            for place, header in self._released_records(first, end, opened):
                whole = Place(place.segment_no, place.offset, header.length)
                found.setdefault(place.segment_no, {})[place.offset] = whole, header.payload_bytes
        if found and self._is_power:
            try:
                # A power loss must not bring a block back as owed whose record is gone; it may be released right now.
                self._files.sync(self._cut.released.file.fd)
            except OSError:
                return
        for segment_no, records in found.items():
            self.free(segment_no, [records[offset] for offset in sorted(records)])

    def unnamed(self, segment_no: int) -> Iterator[list[tuple[Place, int]]]:
        """The records in a segment of a cut that was merged into this one which this one had no use for, as it had
        the blocks itself: no entry names them, and none will. Some at once, for `free`."""
        index, unnamed = self._cut.index, list[tuple[Place, int]]()
        for found in scan_segment(self._cut.segments, segment_no, self._files):
            if isinstance(found, ScanProblem):
                continue
            place, header = found
            first, end = header.block_no, header.block_no + header.block_count
            if end <= index.block_count and pack_place(place) not in index.get_range(first, end):
                unnamed.append((place, header.payload_bytes))
            if len(unnamed) == _PIECE_BLOCKS:
                yield unnamed
                unnamed = []
        yield unnamed

    def free(self, segment_no: int, records: list[tuple[Place, int]]) -> None:
        """Free records that nobody needs, in the order in which they lie there, as far as the disk lets them go."""
        with contextlib.suppress(OSError):
            self._free(segment_no, records)

    def _released_records(
        self, first: int, end: int, opened: contextlib.ExitStack
    ) -> Iterator[tuple[Place, RecordHeader]]:
        """`opened` closes the segments."""
        cut, fds = self._cut, dict[int, int]()
        for _, entries in cut.index.filled_runs(first, end):
            for entry in sorted(set(entries)):
                if entry & KIND_MASK != STORED or entry == LOST_ENTRY:
                    continue
                place = unpack_place(entry)
                if place.segment_no not in fds:
                    fds[place.segment_no] = self._open(place.segment_no, opened)
                header = self._header_at(fds[place.segment_no], place.offset)
                if header and self._needs.need_none(header.block_no, header.block_no + header.block_count):
                    yield place, header

    def _open(self, segment_no: int, opened: contextlib.ExitStack) -> int:
        """A descriptor, which reads nothing when there is no such segment any more."""
        with contextlib.suppress(OSError):
            fd = open_plain(self._cut.segments.find(segment_no), os.O_RDONLY)
            opened.callback(os.close, fd)
            return fd
        return -1

    def _header_at(self, fd: int, offset: int) -> RecordHeader | None:
        """The record's header; None when it was given back before, or is damaged: that is its readers' business."""
        try:
            header = parse_header(self._files.pread(fd, RECORD.size, offset))
        except (Damaged, OSError):
            return None
        return header if header.block_no + header.block_count <= self._cut.index.block_count else None

    def _free(self, segment_no: int, records: list[tuple[Place, int]]) -> None:
        """Free records, in the order in which they lie there."""
        path = self._cut.segments.find(segment_no)
        fd = open_plain(path, os.O_RDWR)
        try:
            for place, payload_bytes in records:
                # A second call must not find the record again, also where it shares its pages with others.
                self._files.pwrite(fd, bytes(RECORD.size), place.offset)
                self._cut.numbers[CutCounter.RETURNED_BYTES] += payload_bytes
            for start, stop in _joined([place for place, _ in records]):
                self._make_hole(fd, start, stop)
        finally:
            os.close(fd)
        if not self._may_grow(segment_no) and self._is_empty(segment_no):
            path.unlink(missing_ok=True)

    def _make_hole(self, fd: int, start: int, stop: int) -> None:
        """Give the pages back that hold nothing but what lies between `start` and `stop`, and zeros."""
        low, high = -(-start // PAGE_BYTES) * PAGE_BYTES, stop // PAGE_BYTES * PAGE_BYTES
        if start < low and self._has_zeroed(fd, low - PAGE_BYTES, start, min(low, stop)):
            low -= PAGE_BYTES
        if max(low, high) == high < stop and self._has_zeroed(fd, high, max(high, start), stop):
            high += PAGE_BYTES
        if low < high:
            self._files.punch(fd, low, high - low)

    def _has_zeroed(self, fd: int, page: int, start: int, stop: int) -> bool:
        """Overwrite a part of the page with zeros; whether it is all zeros then. One that the segment ends in may be
        appended to in this instant by another process."""
        self._files.pwrite(fd, bytes(stop - start), start)
        data = self._files.pread(fd, PAGE_BYTES, page)
        return len(data) == PAGE_BYTES and not any(data)

    def _may_grow(self, segment_no: int) -> bool:
        """Whether it may still be appended to, by whoever does that: it is the latest then."""
        return segment_no == self._control[Counter.NEXT_SEGMENT] - 1

    def _is_empty(self, segment_no: int) -> bool:
        """Whether no record is left in it: what is between them is not counted, and an earlier process may have
        freed some. Looked for once most of it is a hole."""
        info = os.stat(self._cut.segments.find(segment_no))
        if info.st_blocks * _SECTOR_BYTES > max(info.st_size // _WORTH_A_LOOK, _LITTLE_BYTES):
            return False
        found = scan_segment(self._cut.segments, segment_no, self._files, verify=True)
        return all(isinstance(one, ScanProblem) for one in found)


def _joined(places: list[Place]) -> Iterator[tuple[int, int]]:
    """`(start, stop)` of records that lie side by side; they come in order."""
    start = stop = 0
    for place in places:
        if place.offset != stop:
            if stop > start:
                yield start, stop
            start = place.offset
        stop = place.offset + place.length
    if stop > start:
        yield start, stop
