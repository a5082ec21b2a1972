"""Preserving for `power`: compressed into segments, flushed before the image is touched (see `preserve`)."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator

from bitarray.util import zeros

from cow.disk.bitmaps import Bitmap
from cow.disk.codec import encode, encode_lost, payload_bytes
from cow.disk.cut import Cut
from cow.disk.files import Files
from cow.disk.image import Image
from cow.disk.layout import CutCounter, Place, blocks_in_record, pack_place
from cow.disk.segments import SegmentWriter
from cow.disk.store import Store
from cow.geometry import Geometry
from cow.live.losses import read_or_lose, without
from cow.live.preserve import StoreRefused, Ticket, WaitForCompactor, allocate_maps, store_errors
from cow.live.size import BufferSize


class _Turn:
    """One flush that some wait for; `errno` is 0 once it succeeded."""

    def __init__(self) -> None:
        self.is_over = False
        self.errno = errno.EIO


class GroupFlush:
    """One flush for all who wait: whoever comes while one runs is served by the next."""

    def __init__(self, flush: Callable[[], None]) -> None:
        self._flush = flush
        self._changed = threading.Condition()
        self._running = False
        self._next = _Turn()

    def wait(self) -> None:
        """Return when a flush that began after this call has ended; OSError when it failed."""
        with self._changed:
            turn = self._next
            while not turn.is_over and self._running:
                self._changed.wait()
            if not turn.is_over:
                self._run(turn)
        if turn.errno:
            raise OSError(turn.errno, os.strerror(turn.errno))

    def _run(self, turn: _Turn) -> None:
        self._running, self._next = True, _Turn()
        self._changed.release()
        code = errno.EIO
        try:
            self._flush()
            code = 0
        except OSError as error:
            code = error.errno or code
        finally:
            self._changed.acquire()
            self._running = False
            turn.is_over, turn.errno = True, code
            self._changed.notify_all()


class Regions:
    """Which regions of the image may have been written to since the cut, in `touched` and on the disk: one bit for
    many blocks, so that few writes wait for it. After a power loss nothing else tells of a write that preserved
    nothing."""

    def __init__(self, touched: Bitmap, geometry: Geometry, files: Files) -> None:
        self._touched, self._geometry, self._files = touched, geometry, files
        # Bits that are on the disk for certain. What an earlier process has set may not be.
        self._durable = zeros(geometry.region_count, "little")
        self._flush = GroupFlush(self._sync)
        self._failed_flushes = 0

    def note(self, first: int, end: int) -> None:
        """Return when it is on the disk that these blocks are written to. OSError: the store's."""
        low, high = self._geometry.regions(first, end)
        if self._durable.find(0, low, high) < 0:
            return
        failed_flushes = self._failed_flushes
        self._touched.set_range(low, high)
        self._flush.wait()
        if self._failed_flushes != failed_flushes:
            # A flush for others failed, and it may have been our bits that it lost.
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._durable[low:high] = 1

    def _sync(self) -> None:
        try:
            self._files.sync_data(self._touched.file.fd)
        except OSError:
            self._failed_flushes += 1
            raise


class DurablePreserver:
    """Into segments, compressed, flushed before the image is touched. The ring is not used."""

    def __init__(self, store: Store, cut: Cut, image: Image, size: BufferSize, may_lose: Callable[[], bool]) -> None:
        self._cut, self._image, self._size, self._may_lose = cut, image, size, may_lose
        self._control, self._geometry, self._files = store.control, store.geometry, store.files
        self._writer = SegmentWriter(cut.segments, store.control, store.files, durable=True)
        self._write_lock = threading.Lock()
        self._flush = GroupFlush(self._sync)
        self._run_blocks = blocks_in_record(self._geometry.block_bytes)
        self._regions = None if cut.touched is None else Regions(cut.touched, self._geometry, self._files)

    def allocate(self, first: int, end: int, *, may_wait: bool) -> bool:
        with store_errors():
            owed = self._cut.settled.clear_runs(first, end)
            return allocate_maps(self._cut, first, end, owed, may_wait=may_wait)

    def begin(self, ticket: Ticket) -> bool:
        ticket.count = ticket.count_owed()
        size_bytes = ticket.count * self._geometry.block_bytes
        if self._size.over_limit(size_bytes):
            # What is promised raw takes less once it is compressed.
            raise WaitForCompactor if self._size.promised_bytes else StoreRefused(errno.ENOSPC)
        self._size.promised_bytes += size_bytes
        return True

    def try_fill(self, ticket: Ticket) -> bool:
        """A flush always waits."""
        return False

    def fill(self, ticket: Ticket) -> bool:
        parts, records, raw_bytes = [], [], 0
        for run_first, run_end in ticket.runs:
            for first in range(run_first, run_end, self._run_blocks):
                for part, record in self._records_of(ticket, first, min(first + self._run_blocks, run_end)):
                    parts.append(part)
                    records.append(record)
                    raw_bytes += (part[1] - part[0]) * self._geometry.block_bytes
        # Behind the others; they are as durable, and no entry names them.
        generation, seed = self._cut.generation, self._cut.segments.seed
        lost = [encode_lost(first, end - first, generation, seed=seed) for first, end in self._lost_parts(ticket)]
        places = self._append(records + lost)
        ticket.entries = [(*part, pack_place(place)) for part, place in zip(parts, places, strict=False)]
        with self._write_lock:
            self._cut.numbers[CutCounter.STORED_BYTES] += sum(map(payload_bytes, records))
            self._cut.numbers[CutCounter.STORED_RAW_BYTES] += raw_bytes
        return True

    def _records_of(self, ticket: Ticket, first: int, end: int) -> Iterator[tuple[tuple[int, int], bytes]]:
        """The blocks of a record and the record, for what can be read of these blocks."""
        size = self._geometry.block_bytes
        raw = memoryview(bytearray((end - first) * size))

        def place(low: int, high: int) -> memoryview:
            return raw[(low - first) * size : (high - first) * size]

        lost, code = read_or_lose(
            self._image, self._geometry, (first, end), lambda low, high: [place(low, high)], self._may_lose
        )
        ticket.lose(lost, code)
        for low, high in without((first, end), lost):
            yield (
                (low, high),
                encode(low, high - low, self._cut.generation, place(low, high), seed=self._cut.segments.seed),
            )

    def _lost_parts(self, ticket: Ticket) -> Iterator[tuple[int, int]]:
        """The lost blocks of the ticket, no more at once than a record may hold."""
        for run_first, run_end in ticket.lost:
            for first in range(run_first, run_end, self._run_blocks):
                yield first, min(first + self._run_blocks, run_end)

    def _append(self, records: list[bytes]) -> list[Place]:
        """Write the records and wait until they are durable."""
        with store_errors():
            with self._write_lock:
                writer = self._writer
                failed_flushes = writer.failed_flushes
                places = writer.append(records)
            self._flush.wait()
            if writer.failed_flushes != failed_flushes:
                # A flush for others failed, and it may have been our record that it lost.
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return places

    def _sync(self) -> None:
        with self._write_lock:
            # A descriptor of its own: the writer may go on to the next segment and close this one meanwhile.
            writer, fd = self._writer, os.dup(self._writer.fd)
        try:
            self._files.sync_data(fd)
        except OSError:
            with self._write_lock:
                writer.distrust()
            raise
        finally:
            os.close(fd)

    def touch(self, first: int, end: int) -> None:
        if self._regions is not None:
            with store_errors():
                self._regions.note(first, end)

    def publish(self, ticket: Ticket) -> None:
        for first, end, entry in ticket.entries:
            self._cut.index.set_stored(first, end, entry)

    def commit(self, ticket: Ticket) -> None:
        self._size.promised_bytes -= ticket.count * self._geometry.block_bytes

    def abandon(self, ticket: Ticket) -> None:
        self.commit(ticket)

    def discard(self) -> None:
        with self._write_lock:
            # An open file keeps its space on disk, also when the compactor has removed it.
            self._writer.close()
            self._writer = SegmentWriter(self._cut.segments, self._control, self._files, durable=True)

    def close(self) -> None:
        with self._write_lock:
            self._writer.close()
