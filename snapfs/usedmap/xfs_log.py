"""Is the log of an XFS empty of anything that matters?

XFS has no flag that says "clean": the log tells. What is on the disk can be believed when either
1. the last record of the log is the one written by an unmount, or
2. all that lies between tail and head of the log are changes of the superblock alone. A freeze leaves the log
   so (after having written everything else in place), and so does an idle filesystem after a while.

Everything else means that blocks allocated long ago may still be free in the trees on disk.

How the head is found: each 512-byte block of the log starts with the number of its cycle through the log (the words
that stood there are kept in the record header). Blocks before the head have the present cycle, those after it the
one before (0 in a new log), so a binary search finds the head. Then the blocks around it, as many as can have been
in flight at once, must follow that rule without a hole: a hole is a write that was cut short.

A log that a tool has formatted anew (`xfs_repair -L`, `xfs_copy`, `xfs_mdrestore`, `xfs_admin -U`) has a hole that no
driver makes: an unmount record of a later cycle at its beginning, zeros up to where its filling begins, then blocks
of the cycle before. The driver goes on at block 0, so nothing was logged as long as that record stands there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from snapfs.usedmap import xfs_layout as layout
from snapfs.usedmap.checksums import crc32c
from snapfs.usedmap.result import MapError
from snapfs.usedmap.source import Source

_SECTOR_BYTES = layout.DISK_SECTOR_BYTES

# Blocks around the head that may have been in flight, and so out of order, when the writing stopped.
_WINDOW_BLOCKS = layout.LOG_MAX_BUFFERS * (
    layout.LOG_MAX_BUFFER_BYTES // _SECTOR_BYTES + layout.LOG_MAX_BUFFER_BYTES // layout.LOG_CYCLE_SIZE_BYTES
)

# A freeze leaves two records; more than this is not "nothing but the superblock" in any real log.
_MAX_RECORDS = 256


class _DirtyError(MapError):
    def __init__(self, fact: str) -> None:
        super().__init__(f"needs log recovery ({fact}): it is mounted, or was not unmounted")


@dataclass(frozen=True)
class _Record:
    block: int
    cycle: int
    tail_block: int
    tail_cycle: int
    previous_block: int
    operations: int
    header_blocks: int
    payload: bytes
    has_checksum: bool

    @property
    def blocks(self) -> int:
        return self.header_blocks + len(self.payload) // _SECTOR_BYTES


def check_log_clean(log: Source, uuid: bytes, *, may_be_old: bool = False) -> bool:
    """`MapError` unless the on-disk state of the filesystem needs nothing from `log`; whether it was unmounted.

    If not, it is frozen or idle. A log that `may_be_old` is of version 1 or 2, else it is of version 2.
    """
    return _Log(log, uuid, may_be_old).check_clean()


class _Log:
    def __init__(self, source: Source, uuid: bytes, may_be_old: bool) -> None:
        self._versions = (layout.LOG_VERSION_1, layout.LOG_VERSION_2) if may_be_old else (layout.LOG_VERSION_2,)
        self._source = source
        self._uuid = uuid
        self._blocks = source.size_bytes // _SECTOR_BYTES
        if self._blocks < 2:
            raise MapError("has a log without room for a record")

    def check_clean(self) -> bool:
        if self._was_formatted_anew():
            return True
        head = self._find_head()
        self._check_window(head)
        last = self._last_record(head)
        if _is_unmount(last):
            return True
        self._check_superblock_only(last, head)
        return False

    def _was_formatted_anew(self) -> bool:
        """Whether all is as a tool left it that formatted the log of a filesystem which had been in use."""
        if self._cycle(0) < 2 or self._cycle(self._blocks - 1) != self._cycle(0) - 1:
            return False
        if self._first_words(0, 1)[0] != layout.LOG_HEADER_MAGIC:
            return False
        record = self._read_record(0)
        if record.previous_block != layout.LOG_NO_BLOCK or record.has_checksum or not _is_unmount(record):
            return False
        span = min(_WINDOW_BLOCKS, self._blocks) - record.blocks
        content = self._read(record.blocks, span)
        filling = (len(content) - len(content.lstrip(b"\0"))) // _SECTOR_BYTES
        cycles = self._cycles(record.blocks + filling, span - filling)
        return filling > 0 and len(cycles) > 0 and bool((cycles == record.cycle - 1).all())

    def _find_head(self) -> int:
        """The block that the log goes on at (0 when the last write ended at the end of the log)."""
        first, last = self._cycle(0), self._cycle(self._blocks - 1)
        if first == 0:
            raise MapError("has a log without any record")
        if first == last:
            return 0
        low, high = 0, self._blocks - 1  # the cycle at `low` is `first`, the one at `high` is not
        while high - low > 1:
            middle = (low + high) // 2
            if self._cycle(middle) == first:
                low = middle
            else:
                high = middle
        return high

    def _check_window(self, head: int) -> None:
        """Before the head only the present cycle, after it only the one before."""
        span = min(_WINDOW_BLOCKS, self._blocks // 2)
        before, after = self._cycles(head - span, span), self._cycles(head, span)
        present, earlier = int(before[-1]), int(after[0])
        if head and earlier != present - 1:
            raise _DirtyError("its cycles are out of order")
        expected_before = np.full(span, present)
        expected_after = np.full(span, earlier)
        if head:  # where a window goes around the end of the log, it meets the other cycle
            expected_before[: max(span - head, 0)] = earlier
            expected_after[self._blocks - head :] = present
        if not (before == expected_before).all() or not (after == expected_after).all():
            raise _DirtyError("writing it was cut short")

    def _last_record(self, head: int) -> _Record:
        """The record that ends at the head."""
        span = min(_WINDOW_BLOCKS, self._blocks // 2)
        words = self._first_words(head - span, span)
        starts = np.flatnonzero(words == layout.LOG_HEADER_MAGIC)
        if not len(starts):
            raise _DirtyError("no record is in front of its head")
        record = self._read_record((head - span + int(starts[-1])) % self._blocks)
        if (record.block + record.blocks) % self._blocks != head:
            raise _DirtyError("its last record does not end at its head")
        return record

    def _check_superblock_only(self, last: _Record, head: int) -> None:
        block, cycle = last.tail_block, last.tail_cycle
        for _ in range(_MAX_RECORDS):
            record = self._read_record(block)
            if record.cycle != cycle or not record.has_checksum:
                raise _DirtyError("its tail is not where its head says")
            _check_operations(record)
            block += record.blocks
            if block >= self._blocks:
                block, cycle = block - self._blocks, cycle + 1
            if block == head:
                if record.block != last.block:
                    raise _DirtyError("its records do not lead to its head")
                return
        raise _DirtyError("it has many records")

    def _read_record(self, block: int) -> _Record:
        """The record at `block`, its checksum verified and its payload put back as it was before the cycles."""
        if block >= self._blocks:
            raise _DirtyError("it points outside itself")
        header = self._read(block, 1)
        magic, cycle, version, length, lsn, tail, previous, operations = layout.LOG_HEADER.unpack_from(header)
        if magic != layout.LOG_HEADER_MAGIC or version not in self._versions:
            raise _DirtyError("a record has no header")
        if lsn != cycle << 32 | block:
            raise _DirtyError("a record is not where it says it is")
        if header[layout.LOG_HEADER_UUID_OFFSET :][: layout.UUID_BYTES] != self._uuid:
            raise _DirtyError("a record belongs to another filesystem")
        buffer_bytes = int.from_bytes(header[layout.LOG_HEADER_SIZE_OFFSET :][:4], "big")
        if version == layout.LOG_VERSION_1:
            buffer_bytes = layout.LOG_CYCLE_SIZE_BYTES
        if length % _SECTOR_BYTES or not 0 < length <= layout.LOG_MAX_BUFFER_BYTES + 65536:
            raise _DirtyError("a record has a senseless length")
        if not 0 < buffer_bytes <= layout.LOG_MAX_BUFFER_BYTES:
            raise _DirtyError("a record has a senseless size")
        header_blocks = max(-(-buffer_bytes // layout.LOG_CYCLE_SIZE_BYTES), 1)
        if length > header_blocks * layout.LOG_CYCLE_SIZE_BYTES:
            raise _DirtyError("a record is longer than its header allows")
        headers = header + self._read(block + 1, header_blocks - 1)
        payload = self._read(block + header_blocks, length // _SECTOR_BYTES)
        has_checksum = _check_record_checksum(headers, payload)
        restored = _with_saved_words(headers, payload)
        tail_cycle, tail_block = tail >> 32, tail & 0xFFFFFFFF
        return _Record(
            block, cycle, tail_block, tail_cycle, previous, operations, header_blocks, restored, has_checksum
        )

    def _cycle(self, block: int) -> int:
        return int(self._cycles(block, 1)[0])

    def _cycles(self, block: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The cycle of each of `count` blocks; in a record header it is the second word."""
        words = np.frombuffer(self._read(block, count), ">u4").reshape(count, -1)
        cycles = np.where(words[:, 0] == layout.LOG_HEADER_MAGIC, words[:, 1], words[:, 0])
        return cycles.astype(np.int64)

    def _first_words(self, block: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.frombuffer(self._read(block, count), ">u4").reshape(count, -1)[:, 0].astype(np.int64)

    def _read(self, block: int, count: int) -> bytes:
        """`count` blocks from `block` (which may be negative or beyond the end) on, around the end of the log."""
        if count > self._blocks:
            raise _DirtyError("a record is longer than the log")
        block %= self._blocks
        head_count = min(count, self._blocks - block)
        data = self._source.read(block * _SECTOR_BYTES, head_count * _SECTOR_BYTES)
        if head_count < count:
            data += self._source.read(0, (count - head_count) * _SECTOR_BYTES)
        return data


def _check_record_checksum(headers: bytes, payload: bytes) -> bool:
    """False when the record has none: mkfs and repair write their unmount record so."""
    at = layout.LOG_HEADER_CRC_OFFSET
    expected = int.from_bytes(headers[at : at + 4], "little")
    if expected == 0:
        return False
    covered = headers[:at] + bytes(4) + headers[at + 4 : layout.LOG_HEADER_CHECKED_BYTES]
    for start in range(_SECTOR_BYTES, len(headers), _SECTOR_BYTES):
        covered += headers[start : start + layout.LOG_EXTENDED_HEADER_CHECKED_BYTES]
    if crc32c(covered + payload) != expected:
        raise _DirtyError("a record has a wrong checksum")
    return True


def _with_saved_words(headers: bytes, payload: bytes) -> bytes:
    """The payload with the first word of each block as it was before the cycle number replaced it."""
    per_header = layout.LOG_CYCLE_SIZE_BYTES // _SECTOR_BYTES
    saved = headers[layout.LOG_HEADER_CYCLES_OFFSET :][: 4 * layout.LOG_HEADER_CYCLES]
    for start in range(_SECTOR_BYTES, len(headers), _SECTOR_BYTES):
        saved += headers[start + layout.LOG_EXTENDED_CYCLES_OFFSET :][: 4 * per_header]
    words = np.frombuffer(payload, ">u4").reshape(-1, _SECTOR_BYTES // 4).copy()
    words[:, 0] = np.frombuffer(saved, ">u4")[: len(words)]
    return words.tobytes()


def _is_unmount(record: _Record) -> bool:
    flags = layout.LOG_OPERATION.unpack_from(record.payload)[3]
    return record.operations == 1 and bool(flags & layout.LOG_UNMOUNT)


def _check_operations(record: _Record) -> None:
    """Accepts transactions that change the superblock and nothing else."""
    at = 0
    regions_to_skip = 0
    for _ in range(record.operations):
        if at + layout.LOG_OPERATION.size > len(record.payload):
            raise _DirtyError("a record is cut short")
        _, length, client, flags = layout.LOG_OPERATION.unpack_from(record.payload, at)
        at += layout.LOG_OPERATION.size
        body = record.payload[at : at + length]
        at += length
        if client not in (layout.LOG_CLIENT_TRANSACTION, layout.LOG_CLIENT_LOG) or len(body) != length:
            raise _DirtyError("a record holds something unknown")
        if flags not in (0, layout.LOG_START, layout.LOG_COMMIT):
            raise _DirtyError("a transaction spans records")
        if flags or not length:
            if length or regions_to_skip:
                raise _DirtyError("a transaction is cut short")
        elif regions_to_skip:
            regions_to_skip -= 1
        elif not _is_transaction_header(body):
            regions_to_skip = _superblock_regions(body) - 1


def _is_transaction_header(body: bytes) -> bool:
    return len(body) == layout.LOG_TRANSACTION_HEADER_BYTES and (
        int.from_bytes(body[:4], "little") == layout.LOG_TRANSACTION_MAGIC
    )


def _superblock_regions(body: bytes) -> int:
    """Regions of a log item that is a change of the superblock; anything else is something to recover."""
    if len(body) < layout.LOG_BUFFER_ITEM.size:
        raise _DirtyError("changes of metadata wait in it")
    kind, regions, _, _, disk_block = layout.LOG_BUFFER_ITEM.unpack_from(body)
    if kind != layout.LOG_BUFFER_ITEM_TYPE or disk_block != layout.LOG_SUPERBLOCK_DISK_BLOCK or not regions:
        raise _DirtyError("changes of metadata wait in it")
    return int(regions)
