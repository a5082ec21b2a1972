"""Giving space back: records of which every block is released become holes, whole segments of them go.

The live server does this, not the compactor: a record is appended once and never changed, and nobody reads
one whose blocks are all released. Only whole pages can become holes, so neighbouring records are joined first.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from cow.disk.codec import RecordHeader, parse_header
from cow.disk.files import PAGE_BYTES, Files, open_plain
from cow.disk.layout import KIND_MASK, LOST_ENTRY, RECORD, STORED, Place, unpack_place
from cow.disk.segments import ScanProblem, scan_segment, segment_numbers, segment_path
from cow.disk.store import Cut
from cow.errors import Damaged

_SECTOR_BYTES = 512
# A segment of which no more than this share, or this much, is left on the disk is looked through.
_WORTH_A_LOOK, _LITTLE_BYTES = 4, 1 << 20


class GiveBack:
    """Frees the records of one cut; used by one thread at a time."""

    def __init__(self, cut: Cut, files: Files) -> None:
        self._cut, self._files = cut, files

    def give_back(self, first: int, end: int) -> int:
        """Free the records of the released blocks ``first`` to ``end``; the payload bytes they had.

        What the disk does not take back stays taken until the snapshot ends, and nothing else is wrong.
        """
        payload_bytes = 0
        # By offset: a record whose blocks come in two pieces of the range is found twice.
        found: dict[int, dict[int, tuple[Place, int]]] = {}
        for place, header in self._released_records(first, end):
            whole = Place(place.segment_no, place.offset, header.length)
            found.setdefault(place.segment_no, {})[place.offset] = whole, header.payload_bytes
        for segment_no, records in found.items():
            with contextlib.suppress(OSError):
                payload_bytes += self._free(segment_no, [records[offset] for offset in sorted(records)])
        return payload_bytes

    def _released_records(self, first: int, end: int) -> Iterator[tuple[Place, RecordHeader]]:
        cut = self._cut
        for _, entries in cut.index.filled_runs(first, end):
            for entry in sorted(set(entries)):
                if entry & KIND_MASK != STORED or entry == LOST_ENTRY:
                    continue
                place = unpack_place(entry)
                header = self._header_at(place)
                if header and cut.released.all_set(header.block_no, header.block_no + header.block_count):
                    yield place, header

    def _header_at(self, place: Place) -> RecordHeader | None:
        """The record's header; None when it was given back before, or is damaged: that is its readers' business."""
        try:
            fd = open_plain(segment_path(self._cut.segments, place.segment_no), os.O_RDONLY)
        except OSError:
            return None
        try:
            header = parse_header(self._files.pread(fd, RECORD.size, place.offset))
        except (Damaged, OSError):
            return None
        finally:
            os.close(fd)
        return header if header.block_no + header.block_count <= self._cut.index.block_count else None

    def _free(self, segment_no: int, records: list[tuple[Place, int]]) -> int:
        """Free records, in the order in which they lie there; the payload of those that nobody finds any more."""
        path, payload_bytes = segment_path(self._cut.segments, segment_no), 0
        try:
            fd = open_plain(path, os.O_RDWR)
        except FileNotFoundError:
            return 0  # squeezed meanwhile
        try:
            for place, record_bytes in records:
                # A second call must not find the record again, also where it shares its pages with others.
                self._files.pwrite(fd, bytes(RECORD.size), place.offset)
                payload_bytes += record_bytes
            with contextlib.suppress(OSError):
                for start, stop in _joined([place for place, _ in records]):
                    low, high = -(-start // PAGE_BYTES) * PAGE_BYTES, stop // PAGE_BYTES * PAGE_BYTES
                    if low < high:
                        self._files.punch(fd, low, high - low)
        except OSError:
            return payload_bytes
        finally:
            os.close(fd)
        # The latest one is still appended to.
        if segment_no != max(segment_numbers(self._cut.segments), default=0) and self._is_empty(segment_no):
            path.unlink(missing_ok=True)
        return payload_bytes

    def _is_empty(self, segment_no: int) -> bool:
        """Whether no record is left in it: what is between them is not counted, and an earlier process may have
        freed some. Looked for once most of it is a hole."""
        info = os.stat(segment_path(self._cut.segments, segment_no))
        if info.st_blocks * _SECTOR_BYTES > max(info.st_size // _WORTH_A_LOOK, _LITTLE_BYTES):
            return False
        found = scan_segment(self._cut.segments, segment_no, self._files, verify=True)
        return all(isinstance(one, ScanProblem) for one in found)


def _joined(places: list[Place]) -> Iterator[tuple[int, int]]:
    """``(start, stop)`` of records that lie side by side; they come in order."""
    start = stop = 0
    for place in places:
        if place.offset != stop:
            if stop > start:
                yield start, stop
            start = place.offset
        stop = place.offset + place.length
    if stop > start:
        yield start, stop
