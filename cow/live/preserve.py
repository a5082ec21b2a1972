"""Putting the old content of owed blocks into the side buffer: two ways, by durability.

``StagedPreserver`` (``process``): raw into the memory-mapped staging ring, one copy; the compactor does the
rest. ``DurablePreserver`` (``power``): compressed into a segment and flushed to the disk, one flush for all
writes that wait at that moment.

Both work on a *ticket*: the runs of blocks one write claimed. ``begin``, ``publish`` and ``abandon`` are
called under the engine's lock and do not wait; ``fill`` is called without it and may.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from cow.disk.codec import encode, encode_lost, payload_bytes
from cow.disk.image import Image
from cow.disk.layout import Counter, CutCounter, Place, blocks_in_record, pack_place
from cow.disk.numbers import Control
from cow.disk.segments import SegmentWriter, remove_segments
from cow.disk.store import Cut, Store
from cow.errors import CowError
from cow.live.losses import Runs, read_or_lose, without

# Places in the control page as plain numbers: to look a member of an enumeration up takes longer than to use it.
_RESERVED_SEQ: Final = Counter.RESERVED_SEQ.value
_COMMITTED_SEQ: Final = Counter.COMMITTED_SEQ.value
_FREED_SEQ: Final = Counter.FREED_SEQ.value
_STORE_ERRNO: Final = CutCounter.STORE_ERRNO.value
_LIMIT_BYTES: Final = Counter.LIMIT_BYTES.value
_FIRST_SEQ: Final = CutCounter.FIRST_SEQ.value
_STORED_BYTES: Final = CutCounter.STORED_BYTES.value
_RETURNED_BYTES: Final = CutCounter.RETURNED_BYTES.value


class StoreRefused(CowError):
    """The store's disk cannot take what has to be preserved; ``errno`` says why. Handle it as an overflow."""

    def __init__(self, errno: int) -> None:
        super().__init__("the store cannot take the block")
        self.errno = errno


class WaitForCompactor(CowError):
    """There is no room now, but the compactor is about to make some."""


@dataclass(slots=True, eq=False)
class Ticket:
    """The blocks ``first`` to ``end`` one write claimed, the owed ``runs`` among them, and where they go."""

    first: int
    end: int
    runs: Runs
    count: int = 0
    seq: int = 0
    entries: Sequence[tuple[int, int, int]] = ()
    # What of the runs the image could not give, and with which errno.
    lost: Sequence[tuple[int, int]] = ()
    lost_errno: int = 0

    def lose(self, lost: Runs, code: int) -> None:
        """These blocks cannot be preserved."""
        if lost:
            self.lost, self.lost_errno = [*self.lost, *lost], code

    def count_owed(self) -> int:
        """How many blocks are to be preserved."""
        count = 0
        for first, end in self.runs:
            count += end - first
        return count


class Preserver(Protocol):
    """See the module's docstring for who calls what when."""

    def begin(self, ticket: Ticket) -> None:
        """Reserve room; StoreRefused or WaitForCompactor when there is none."""

    def try_fill(self, ticket: Ticket) -> bool:
        """``fill`` without waiting; False if that cannot be done."""

    def fill(self, ticket: Ticket) -> None:
        """Copy the old content aside, but for what the image cannot give: the ticket says what that is.

        OSError: the image's, and nothing may be lost. StoreRefused: the store's.
        """

    def publish(self, ticket: Ticket) -> None:
        """Make the index entries, but for those of lost blocks. OSError: of some only; the room is used up."""

    def abandon(self, ticket: Ticket) -> None:
        """Give the room back."""

    def discard(self) -> None:
        """The snapshot is over: give everything back to the disk."""

    def close(self) -> None:
        """Close what is open."""


@contextmanager
def store_errors() -> Iterator[None]:
    """Within this, an OSError is the store's: it becomes StoreRefused."""
    try:
        yield
    except OSError as error:
        raise StoreRefused(error.errno or errno.EIO) from error


def _over_limit(control: Control, cut: Cut, staged_bytes: int, more_bytes: int) -> bool:
    limit, numbers = control[_LIMIT_BYTES], cut.numbers
    if not limit:
        return False
    return numbers[_STORED_BYTES] - numbers[_RETURNED_BYTES] + staged_bytes + more_bytes > limit


def _allocate(cut: Cut, ticket: Ticket) -> None:
    """After this no store into the maps of these blocks can meet a full disk."""
    for first, end in ticket.runs:
        cut.index.allocate(first, end)
    cut.settled.allocate(ticket.first, ticket.end)
    cut.changed.allocate(ticket.first, ticket.end)


class StagedPreserver:
    """Into the ring. Slots are committed in order: those behind a ticket that is not filled yet must wait."""

    def __init__(self, store: Store, cut: Cut, image: Image, may_lose: Callable[[], bool]) -> None:
        self._cut, self._image, self._may_lose = cut, image, may_lose
        self._staging, self._control, self._geometry = store.staging, store.control, store.geometry
        self._open: list[Ticket] = []

    def begin(self, ticket: Ticket) -> None:
        control, staging = self._control, self._staging
        count = ticket.count_owed()
        reserved = control[_RESERVED_SEQ]
        # Freed before stored (in _over_limit): a step that ends in between is counted twice, not missed.
        waiting = reserved - control[_FREED_SEQ]
        failed = self._cut.numbers[_STORE_ERRNO]
        if control[_LIMIT_BYTES] and self._is_over_limit(waiting, count):
            # Staged blocks count with their raw size until it is known how small they get.
            if waiting and not failed:
                raise WaitForCompactor
            raise StoreRefused(failed or errno.ENOSPC)
        if waiting + count > staging.slots:
            if failed:
                raise StoreRefused(failed)
            raise WaitForCompactor
        try:
            staging.allocate()
            _allocate(self._cut, ticket)
        except OSError as error:
            raise StoreRefused(error.errno or errno.EIO) from error
        ticket.seq, ticket.count = reserved, count
        control[_RESERVED_SEQ] = reserved + count
        self._open.append(ticket)

    def _is_over_limit(self, waiting: int, count: int) -> bool:
        # Those of the cut before are about to be forgotten.
        own = min(waiting, self._control[_RESERVED_SEQ] - self._cut.numbers[_FIRST_SEQ])
        size = self._geometry.block_bytes
        return _over_limit(self._control, self._cut, own * size, count * size)

    def try_fill(self, ticket: Ticket) -> bool:
        seq = ticket.seq
        for first, end in ticket.runs:
            views = self._staging.views(seq, end - first)
            if not self._image.try_read_into(views, self._geometry.extent(first, end)[0]):
                return False
            self._staging.fill(self._cut.generation, seq, first, end)
            seq += end - first
        return True

    def fill(self, ticket: Ticket) -> None:
        seq = ticket.seq
        for first, end in ticket.runs:
            self._fill_run(ticket, seq, first, end)
            seq += end - first

    def _fill_run(self, ticket: Ticket, seq: int, first: int, end: int) -> None:
        staging, base = self._staging, seq - first

        def slots(low: int, high: int) -> list[memoryview]:
            return staging.views(base + low, high - low)

        try:
            lost, code = read_or_lose(self._image, self._geometry, (first, end), slots, self._may_lose)
        except OSError as error:
            if error.errno != errno.EFAULT:
                raise
            raise StoreRefused(errno.EIO) from error
        with store_errors():
            for low, high in without((first, end), lost):
                staging.fill(self._cut.generation, base + low, low, high)
        for low, high in lost:
            staging.void(base + low, high - low)
        ticket.lose(lost, code)

    def publish(self, ticket: Ticket) -> None:
        seq = ticket.seq
        try:
            for first, end in ticket.runs:
                self._cut.index.set_staged(first, end, seq)
                seq += end - first
        finally:
            # Slots that got no entry are dead, the others may be settled.
            self._commit(ticket)

    def abandon(self, ticket: Ticket) -> None:
        if self._control[_RESERVED_SEQ] == ticket.seq + ticket.count:
            self._control[_RESERVED_SEQ] = ticket.seq
        else:
            self._staging.void(ticket.seq, ticket.count)
        self._commit(ticket)

    def _commit(self, ticket: Ticket) -> None:
        self._open.remove(ticket)
        control = self._control
        control[_COMMITTED_SEQ] = self._open[0].seq if self._open else control[_RESERVED_SEQ]

    def discard(self) -> None:
        """The compactor owns the segments and does it."""

    def close(self) -> None:
        """Nothing is open."""


class _Turn:
    """One flush that some wait for; ``errno`` is 0 once it succeeded."""

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


class DurablePreserver:
    """Into segments, compressed, flushed before the image is touched. The ring is not used."""

    def __init__(self, store: Store, cut: Cut, image: Image, may_lose: Callable[[], bool]) -> None:
        self._cut, self._image, self._may_lose = cut, image, may_lose
        self._control, self._geometry, self._files = store.control, store.geometry, store.files
        self._writer = SegmentWriter(cut.segments, store.files, durable=True)
        self._write_lock = threading.Lock()
        self._flush = GroupFlush(self._sync)
        self._promised_bytes = 0
        self._run_blocks = blocks_in_record(self._geometry.block_bytes)

    def begin(self, ticket: Ticket) -> None:
        ticket.count = ticket.count_owed()
        size_bytes = ticket.count * self._geometry.block_bytes
        if _over_limit(self._control, self._cut, self._promised_bytes, size_bytes):
            raise WaitForCompactor if self._promised_bytes else StoreRefused(errno.ENOSPC)
        with store_errors():
            _allocate(self._cut, ticket)
        self._promised_bytes += size_bytes

    def try_fill(self, ticket: Ticket) -> bool:
        """A flush always waits."""
        return False

    def fill(self, ticket: Ticket) -> None:
        parts, records, raw_bytes = [], [], 0
        for run_first, run_end in ticket.runs:
            for first in range(run_first, run_end, self._run_blocks):
                for part, record in self._records_of(ticket, first, min(first + self._run_blocks, run_end)):
                    parts.append(part)
                    records.append(record)
                    raw_bytes += (part[1] - part[0]) * self._geometry.block_bytes
        # Behind the others; they are as durable, and no entry names them.
        generation = self._cut.generation
        lost = [encode_lost(first, end - first, generation) for first, end in self._lost_parts(ticket)]
        places = self._append(records + lost)
        ticket.entries = [(*part, pack_place(place)) for part, place in zip(parts, places, strict=False)]
        with self._write_lock:
            self._cut.numbers[CutCounter.STORED_BYTES] += sum(map(payload_bytes, records))
            self._cut.numbers[CutCounter.STORED_RAW_BYTES] += raw_bytes

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
            yield (low, high), encode(low, high - low, self._cut.generation, place(low, high))

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

    def publish(self, ticket: Ticket) -> None:
        self._promised_bytes -= ticket.count * self._geometry.block_bytes
        for first, end, entry in ticket.entries:
            self._cut.index.set_stored(first, end, entry)

    def abandon(self, ticket: Ticket) -> None:
        self._promised_bytes -= ticket.count * self._geometry.block_bytes

    def discard(self) -> None:
        with self._write_lock:
            self._writer.close()
            remove_segments(self._cut.segments)
            self._writer = SegmentWriter(self._cut.segments, self._files, durable=True)

    def close(self) -> None:
        with self._write_lock:
            self._writer.close()
