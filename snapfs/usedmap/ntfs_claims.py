"""The files of an NTFS volume as witnesses: which clusters the records of its MFT claim.

Rules
1. All records count that say of themselves that they are in use, or that the MFT's bitmap calls in use: base
   records and extension records, system files and directories, every stream and every other attribute.
2. Such a record has to be whole (mark, update sequence, its own number, a list of attributes with an end), and
   every attribute outside of it has to hold as many clusters as it says. Else nobody knows what it claims.
3. The pieces of attributes that are spread over several records are, all together, as long as the first piece of
   each says: a record that got lost is missed.

The MFT is read a few MiB at a time, and all records of a piece are looked at together: about two seconds and some
ten MiB of memory for a million records. Behind the first `_ALWAYS_READ_BYTES` only records near those that the
MFT's bitmap calls in use are read, so an MFT of nothing but zeros costs nothing.

Layout and its sources: `ntfs_layout`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from snapfs.usedmap import ntfs_layout as layout
from snapfs.usedmap.claims import Claims
from snapfs.usedmap.ntfs_mft import RecordTable
from snapfs.usedmap.ntfs_records import Volume
from snapfs.usedmap.ntfs_runs import CLUSTERS_MAX, PADDING_BYTES, Numbers, runs_at_once
from snapfs.usedmap.result import MapError

_PIECE_BYTES = 4 << 20
_ALWAYS_READ_BYTES = 2 << 30

_MARK = int.from_bytes(layout.RECORD_MARK, "little")
_MARK_BAD = int.from_bytes(layout.RECORD_MARK_BAD, "little")


def claim_clusters(volume: Volume, table: RecordTable, claims: Claims) -> None:
    """Claim the clusters of all files; `MapError` when a claim fails or a record cannot be understood."""
    missing = 0
    for numbers, content in _pieces(volume, table):
        records = _Records(numbers, content, volume.record_bytes)
        records.undo_sequences()
        attributes = _Attributes(records.content, records.non_resident())
        attributes.claim(volume, claims)
        missing += attributes.missing_clusters(volume)
    if missing:
        raise MapError("has files of which MFT records are missing")


def _pieces(volume: Volume, table: RecordTable) -> Iterator[tuple[Numbers, NDArray[np.uint8]]]:
    """Numbers and contents of the records in use, one row each, some thousand at a time."""
    at_once = _PIECE_BYTES // volume.record_bytes
    buffer = np.zeros((at_once, volume.record_bytes), dtype=np.uint8)
    places = _Places(volume, table)
    for first in range(0, len(table.in_use), at_once):
        bits = table.in_use[first : first + at_once]
        if first * volume.record_bytes >= _ALWAYS_READ_BYTES and not bits.any():
            places.skip(len(bits) * volume.record_bytes)
            continue
        content = buffer[: len(bits)]
        places.readinto(content.reshape(-1).data)
        in_use = np.unpackbits(np.frombuffer(bits.tobytes(), np.uint8), bitorder="little")[: len(bits)] > 0
        rows = np.flatnonzero(in_use | _says_in_use(content))
        if len(rows):
            yield first + rows, content[rows]


def _says_in_use(content: NDArray[np.uint8]) -> NDArray[np.bool_]:
    mark = content.view("<u4")[:, 0]
    result: NDArray[np.bool_] = (mark == _MARK) | (mark == _MARK_BAD)
    return result & (content.view("<u2")[:, 11] & layout.RECORD_IN_USE > 0)


class _Places:
    """Reads $MFT from its start to its end, run after run."""

    def __init__(self, volume: Volume, table: RecordTable) -> None:
        self._source = volume.source
        self._pieces = volume.pieces(table.records, 0, len(table.in_use) * volume.record_bytes)
        self._offset, self._length = 0, 0

    def readinto(self, view: memoryview) -> None:
        done = 0
        while done < len(view):
            count = self._next(len(view) - done)
            with view[done : done + count] as part:
                self._source.readinto(self._offset - count, part)
            done += count

    def skip(self, length: int) -> None:
        while length:
            length -= self._next(length)

    def _next(self, most: int) -> int:
        """Step over at most that many bytes of the present run; returns how many."""
        if not self._length:
            self._offset, self._length = next(self._pieces)
        count = min(most, self._length)
        self._offset += count
        self._length -= count
        return count


class _Records:
    """Records in use, one row of bytes each; `content` is one flat array of them with padding behind."""

    def __init__(self, numbers: Numbers, rows: NDArray[np.uint8], record_bytes: int) -> None:
        self._numbers = numbers
        self._record_bytes = record_bytes
        self.content = np.zeros(rows.size + PADDING_BYTES, dtype=np.uint8)
        self._rows = self.content[: rows.size].reshape(rows.shape)
        self._rows[:] = rows
        self._halves, self._words = self._rows.view("<u2"), self._rows.view("<u4")
        self._refuse_if(self._words[:, 0] != _MARK, "is damaged")
        self._refuse_if(self._words[:, 7] != record_bytes, "has a wrong size")
        self._used_bytes = self._words[:, 6].astype(np.int64)
        self._refuse_if(self._used_bytes > record_bytes, "has a wrong size")

    def undo_sequences(self) -> None:
        """Put back what the update sequences replaced; a record that was written only in part is refused."""
        offsets, counts = self._halves[:, 2], self._halves[:, 3]
        stride = layout.SEQUENCE_STRIDE_BYTES
        count = self._record_bytes // stride + 1
        broken = (counts != count) | (offsets % 2 > 0) | (offsets + 2 * count > stride - 2)
        self._refuse_if(broken | (offsets < layout.RECORD.size), "has a wrong update sequence")
        for offset in np.unique(offsets).tolist():
            self._undo_sequence(np.flatnonzero(offsets == offset), offset // 2, count)
        has_number = offsets >= layout.SEQUENCE_AFTER_NO_OFFSET
        number = self._words[:, layout.RECORD_NO_OFFSET // 4]
        self._refuse_if(has_number & (number != self._numbers & 0xFFFFFFFF), "says that it is another one")

    def _undo_sequence(self, rows: Numbers, first: int, count: int) -> None:
        for index in range(1, count):
            last = index * layout.SEQUENCE_STRIDE_BYTES // 2 - 1
            torn = np.zeros(len(self._rows), dtype=np.bool_)
            torn[rows] = self._halves[rows, last] != self._halves[rows, first]
            self._refuse_if(torn, "was written only in part")
            self._halves[rows, last] = self._halves[rows, first + index]

    def non_resident(self) -> tuple[Numbers, Numbers]:
        """Where attributes outside the MFT begin and end in `content`, after a walk through all attributes."""
        row_starts = np.arange(len(self._rows)) * self._record_bytes
        at = row_starts + self._halves[:, 10]
        end = row_starts + self._used_bytes
        self._refuse_if((self._halves[:, 10] % 8 > 0) | (at < row_starts + layout.RECORD.size), "is broken")
        words = self.content.view("<u4")
        firsts, ends = [at[:0]], [at[:0]]
        while len(at):
            _refuse_if((at + 4 > end).any(), "has an MFT record with a broken list of attributes")
            goes_on = words[at >> 2] != layout.ATTRIBUTES_END
            at, end = at[goes_on], end[goes_on]
            length = words[(at >> 2) + 1].astype(np.int64)
            outside = self.content[at + 8]
            broken = (length < 24) | (length % 8 > 0) | (at + length > end) | (outside > 1)
            _refuse_if(broken.any(), "has an MFT record with a broken list of attributes")
            firsts.append(at[outside > 0])
            ends.append((at + length)[outside > 0])
            at = at + length
        return np.concatenate(firsts), np.concatenate(ends)

    def _refuse_if(self, broken: NDArray[np.bool_], how: str) -> None:
        if broken.any():
            raise MapError(f"has an MFT record in use ({self._numbers[np.argmax(broken)]}) that {how}")


class _Attributes:
    """Attributes outside the MFT, from `places[0]` to before `places[1]` of `content`."""

    def __init__(self, content: NDArray[np.uint8], places: tuple[Numbers, Numbers]) -> None:
        self._content = content
        self._firsts, self._ends = places
        broken = "has a file whose sizes contradict each other"
        _refuse_if((self._firsts + layout.NON_RESIDENT.size > self._ends).any(), broken)
        longs = content.view("<i8")
        word = self._firsts >> 3
        self._first_cluster, last_cluster = longs[word + 2], longs[word + 3]
        _refuse_if(((self._first_cluster < 0) | (last_cluster < -1) | (last_cluster > CLUSTERS_MAX)).any(), broken)
        self._span = last_cluster + 1 - self._first_cluster
        self._allocated_bytes = longs[word + 5]

    def claim(self, volume: Volume, claims: Claims) -> None:
        """Claim all clusters of the run lists."""
        at = self._firsts + self._content.view("<u2")[(self._firsts >> 1) + 16]
        broken = (at < self._firsts + layout.NON_RESIDENT.size) | (at > self._ends)
        _refuse_if(broken.any(), "has a file with a broken list of clusters")
        lists = runs_at_once(self._content, at, self._ends, volume.cluster_count)
        _refuse_if((lists.spans != self._span).any(), "has a file with fewer or more clusters than it says")
        claims.add_all(lists.starts, lists.ends)

    def missing_clusters(self, volume: Volume) -> int:
        """How many clusters the first pieces promise that are not in these pieces (negative: more are)."""
        promised = self._allocated_bytes[self._first_cluster == 0]
        clusters = promised // volume.cluster_bytes
        _refuse_if(
            ((promised % volume.cluster_bytes != 0) | (clusters < 0) | (clusters > CLUSTERS_MAX)).any(),
            "has a file whose sizes contradict each other",
        )
        return int(clusters.sum()) - int(self._span.sum())


def _refuse_if(broken: bool | np.bool_, reason: str) -> None:
    if broken:
        raise MapError(reason)
