"""Segments: append-only files of records, 64 MiB each at most, in one directory of the store for all its cuts.

A segment holds records of one generation, and its number is never used again. A cut that others were merged into has
their records too, where they are. One process appends (the compactor;
with durability `power` the live server), the compactor alone removes, any process reads. A segment is never
appended to after a restart: a torn record at its end stays where it is and no index entry names it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from cow.disk.codec import RecordHeader, decode, parse_header
from cow.disk.direct import ALIGN_BYTES, DirectWriter
from cow.disk.files import Data, Files
from cow.disk.layout import (
    LOST_ENTRY,
    MAX_SEGMENT_NO,
    RECORD,
    RECORD_ALIGN,
    RECORD_MAGIC,
    SEGMENT_BYTES,
    Counter,
    Place,
    RecordFlag,
    unpack_place,
)
from cow.disk.numbers import Control
from cow.disk.plain import open_plain
from cow.disk.segment_files import OpenSegment, OpenSegments, Segments
from cow.errors import CowError, Damaged, WouldWait

_MAGIC = RECORD_MAGIC.to_bytes(4, "little")


class SegmentWriter:
    """Appends records; not thread-safe. With `durable` a full segment is flushed before the next begins.

    Many records at once are written through `direct` if there is one, and begin and end at a page then.
    """

    def __init__(
        self,
        segments: Segments,
        control: Control,
        files: Files,
        *,
        durable: bool = False,
        direct: DirectWriter | None = None,
    ) -> None:
        self._segments, self._control, self._files, self._durable = segments, control, files, durable
        # That which is appended to; 0 before the first record.
        self.segment_no = 0
        self._direct = direct
        self._offset = SEGMENT_BYTES
        self.fd = -1
        # Counts the flushes that failed: what was appended before such a one may never reach the disk.
        self.failed_flushes = 0

    def append(self, records: list[bytes]) -> list[Place]:
        """Write `records` (padded, each at most 2 MiB) and tell where each lies. OSError: none counts."""
        places: list[Place] = []
        start = 0
        while start < len(records):
            end, length = self._fitting(records, start)
            if end == start:
                self._next_segment()
                continue
            at = self._write(records[start:end], length)
            for record in records[start:end]:
                places.append(Place(self.segment_no, at, len(record)))
                at += len(record)
            start = end
        return places

    def _write(self, records: list[bytes], length: int) -> int:
        """Append `length` bytes; where they begin."""
        direct = self._direct
        if direct and direct.suits(length):
            at = -(-self._offset // ALIGN_BYTES) * ALIGN_BYTES
            if at + length <= SEGMENT_BYTES and direct.write(self.fd, records, length, at):
                self._offset = -(-(at + length) // ALIGN_BYTES) * ALIGN_BYTES
                return at
        at = self._offset
        self._files.pwrite(self.fd, b"".join(records), at)
        self._offset += length
        return at

    def _fitting(self, records: list[bytes], start: int) -> tuple[int, int]:
        room, length, end = SEGMENT_BYTES - self._offset, 0, start
        while end < len(records) and length + len(records[end]) <= room:
            length += len(records[end])
            end += 1
        return end, length

    def _next_segment(self) -> None:
        if self._durable and self.fd >= 0:
            # The flush that the old segment's writers are about to wait for goes to the new one.
            try:
                self._files.sync_data(self.fd)
            except OSError:
                self.distrust()
                raise
        segment_no, fd = self._create()
        try:
            if self._durable:
                # Records are only as durable as the name of their file.
                self._files.sync_directory(self._segments.directory)
        except BaseException:
            os.close(fd)
            self._segments.path(segment_no).unlink(missing_ok=True)
            # Whoever removes segments takes the one before for finished.
            self.begin_segment()
            raise
        self.close()
        self.fd, self._offset, self.segment_no = fd, 0, segment_no

    def _create(self) -> tuple[int, int]:
        control = self._control
        while (segment_no := max(1, control[Counter.NEXT_SEGMENT])) <= MAX_SEGMENT_NO:
            with contextlib.suppress(FileExistsError):
                fd = open_plain(self._segments.path(segment_no), os.O_RDWR | os.O_CREAT | os.O_EXCL)
                control[Counter.NEXT_SEGMENT] = segment_no + 1
                return segment_no, fd
            # Whoever made it was killed before he could say so.
            control[Counter.NEXT_SEGMENT] = segment_no + 1
        raise OSError(errno.ENOSPC, "the store has no segment numbers left")

    def begin_segment(self) -> None:
        """Append no more to the present segment."""
        self._offset = SEGMENT_BYTES

    def distrust(self) -> None:
        """A flush failed: of all records since the last one nothing is known, and none may follow them.

        The kernel reports a lost page once; another flush of the same segment would seem to succeed.
        """
        self.failed_flushes += 1
        self.begin_segment()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class SegmentReader:
    """Reads single records by index entry, checked; `opened`: what it has open in common with others."""

    def __init__(self, segments: Segments, files: Files, opened: OpenSegments | None = None) -> None:
        self._segments, self._files, self._opened = segments, files, opened or OpenSegments()

    def read(self, entry: int, block_no: int, *, may_wait: bool = True) -> tuple[RecordHeader, Data]:
        """Header and raw blocks of the record that holds `block_no`; Damaged when it does not.

        WouldWait: unless `may_wait`, what is not in the page cache is not read.
        """
        if entry == LOST_ENTRY:
            raise Damaged("its preserved content is lost", block_no)
        place = unpack_place(entry)
        segment = self._segment(place.segment_no, block_no)
        data = self._read_place(segment.fd, place, may_wait=may_wait)
        try:
            header, raw = decode(data, seed=self._segments.seed)
        except Damaged as error:
            raise Damaged(f"{error.what} (segment {place.segment_no}, offset {place.offset})", block_no) from None
        if not self._segments.has(header.generation) or not 0 <= block_no - header.block_no < header.block_count:
            raise Damaged(f"the record of segment {place.segment_no} belongs to other blocks", block_no)
        if header.flag is RecordFlag.LOST:
            raise Damaged("its preserved content is lost", block_no)
        return header, raw

    def _read_place(self, fd: int, place: Place, *, may_wait: bool) -> Data:
        if may_wait:
            return self._files.pread(fd, place.length, place.offset)
        data = bytearray(place.length)
        if not self._files.try_read_into(fd, [memoryview(data)], place.offset):
            raise WouldWait
        return data

    def _segment(self, segment_no: int, block_no: int) -> OpenSegment:
        try:
            return self._opened.of(self._segments, segment_no)
        except FileNotFoundError:
            raise Damaged(f"segment {segment_no} is missing", block_no) from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ELOOP):
                raise
            raise Damaged(f"segment {segment_no} is no plain file of the store's owner", block_no) from None

    def close(self) -> None:
        self._opened.close()


class ScanProblem(CowError):
    """Where a scan found bytes that are no record, with their offset; it went on behind them where it could."""

    def __init__(self, segment_no: int, offset: int, what: str) -> None:
        super().__init__(f"segment {segment_no}, offset {offset}: {what}")
        self.segment_no, self.offset, self.what = segment_no, offset, what


def scan_segment(
    segments: Segments, segment_no: int, files: Files, *, verify: bool = False
) -> Iterator[tuple[Place, RecordHeader] | ScanProblem]:
    """All records of a segment in order; with `verify` their checksums too.

    A place that holds no valid record is reported once; the scan finds its way again at the next multiple of
    32 bytes where a whole, valid record begins.
    """
    fd = open_plain(segments.find(segment_no), os.O_RDONLY)
    try:
        size_bytes = os.fstat(fd).st_size
        # Headers lead from one record to the next; behind anything else only a whole one is believed.
        offset, is_led = 0, True
        while offset < size_bytes:
            found = _record_at(fd, files, offset, size_bytes, verify=verify or not is_led, seed=segments.seed)
            if isinstance(found, RecordHeader):
                yield Place(segment_no, offset, found.length), found
                offset, is_led = offset + found.length, True
                continue
            if found and is_led:
                yield ScanProblem(segment_no, offset, found)
            is_led = False
            offset = _next_candidate(fd, offset, size_bytes)
    finally:
        os.close(fd)


def _record_at(fd: int, files: Files, offset: int, size_bytes: int, *, verify: bool, seed: int) -> RecordHeader | str:
    head = files.pread(fd, RECORD.size, offset)
    if not any(head[:RECORD_ALIGN]):
        return ""  # a hole left by what was released, or the rest of a page
    try:
        header = parse_header(head)
        if offset + RECORD.size + header.payload_bytes > size_bytes:
            raise Damaged("the record is cut short")
        if verify:
            decode(files.pread(fd, header.length, offset), seed=seed)
    except Damaged as error:
        return error.what
    return header


def _next_candidate(fd: int, offset: int, size_bytes: int) -> int:
    """The next aligned offset where a record may begin: past holes, at a record's magic number."""
    offset += RECORD_ALIGN
    while offset < size_bytes:
        try:
            offset = -(-os.lseek(fd, offset, os.SEEK_DATA) // RECORD_ALIGN) * RECORD_ALIGN
        except OSError:
            return size_bytes
        window = os.pread(fd, 1 << 20, offset)
        for at in range(0, len(window), RECORD_ALIGN):
            if window[at : at + 4] == _MAGIC:
                return offset + at
        offset += max(len(window), RECORD_ALIGN)
    return size_bytes
