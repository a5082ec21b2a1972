"""The directories of an exFAT volume as witnesses: which clusters do they claim?

Rules
1. Every directory that can be reached from the root is read, up to its end mark. What follows the mark is unused;
   an entry in use there shows that the mark is none, and that files are hidden behind it.
2. Entries in use come in sets: a file, its stream, its name, perhaps something of a vendor. A set is whole, of
   known kinds, and has the right checksum. Else nobody knows what it claims. Deleted entries claim nothing.
3. A stream claims clusters that follow each other, or those of its chain in the FAT, which is not shorter than
   the stream. Directories claim theirs when they are read, so a circle of directories claims something twice.

Directories are read one after the other and understood some MiB at a time.

Layout and its source: `exfat_layout`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from snapfs.usedmap import exfat_layout as layout
from snapfs.usedmap.claims import Claims
from snapfs.usedmap.exfat_geometry import Fat, Volume
from snapfs.usedmap.exfat_sets import FileSets, last_boundary
from snapfs.usedmap.result import MapError

# Entries that are understood at once.
_BATCH_BYTES = 4 << 20
# Most directories are short, and are read to their end mark; what is read behind it is checked to be unused, and
# that is at least so many entries.
_FIRST_READ_BYTES, _READ_BYTES_MAX = 8 << 10, 1 << 20
_LOOK_BEHIND_ENTRIES = 128

_END = bytes(layout.DIRECTORY_ENTRY_BYTES)


def claim_tree(volume: Volume, fat: Fat, claims: Claims) -> None:
    """Claim the clusters of all directories and files; `MapError` when a claim fails or an entry is broken."""
    tree = _Tree(volume, fat, claims)
    tree.wait_for_root()
    tree.walk()


class _Tree:
    """A walk through all directories."""

    def __init__(self, volume: Volume, fat: Fat, claims: Claims) -> None:
        self._volume = volume
        self._fat = fat
        self._claims = claims
        # First cluster, number of clusters (the root's is not known: 0), whether they follow each other. Some
        # directories to an array, for there may be millions.
        self._waiting: deque[NDArray[np.int64]] = deque()

    def wait_for_root(self) -> None:
        self._waiting.append(np.array([[self._volume.root_cluster, 0, 0]], dtype=np.int64))

    def walk(self) -> None:
        """Read all waiting directories and those that are found in them."""
        while self._waiting:
            batch = bytearray()
            for content in self._contents():
                batch += content
                if len(batch) >= _BATCH_BYTES:
                    end = last_boundary(batch)
                    self._claim_sets(batch[:end])
                    del batch[:end]
            self._claim_sets(batch)

    def _claim_sets(self, entries: bytearray) -> None:
        sets = FileSets(entries, self._volume)
        files = sets.streams[~sets.is_directory]
        in_a_row = files[:, 2] > 0
        starts = files[in_a_row, 0] - layout.FIRST_CLUSTER
        self._claims.add_all(starts, starts + files[in_a_row, 1])
        for first, count, _ in files[~in_a_row].tolist():
            if count > sum(length for _, length in self._claimed_chain(first)):
                raise MapError("has a file whose chain of clusters is too short")
        if sets.is_directory.any():
            self._waiting.append(sets.streams[sets.is_directory])

    def _claimed_chain(self, first: int) -> Iterator[tuple[int, int]]:
        """Rows of a chain, claimed one after the other, so that a circle ends in a claim that fails."""
        for start, length in self._fat.rows(first):
            self._claims.add(start - layout.FIRST_CLUSTER, start - layout.FIRST_CLUSTER + length)
            yield start, length

    def _contents(self) -> Iterator[bytes]:
        """Entries of the directories that wait, piece by piece; an end mark closes each directory."""
        while self._waiting:
            for first, count, in_a_row in self._waiting.popleft().tolist():
                yield from self._content(self._rows(first, count, in_a_row))
                yield _END

    def _rows(self, first: int, count: int, in_a_row: int) -> list[tuple[int, int]]:
        """The clusters of a directory, claimed."""
        if in_a_row:
            self._claims.add(first - layout.FIRST_CLUSTER, first - layout.FIRST_CLUSTER + count)
            return [(first, count)]
        rows = []
        total = 0
        for start, length in self._claimed_chain(first):
            rows.append((start, length))
            total += length
            if total * self._volume.cluster_bytes > max(layout.DIRECTORY_BYTES_MAX, self._volume.cluster_bytes):
                raise MapError("has a directory larger than any real one")
        if count and total != count:
            raise MapError("has a directory whose chain of clusters has a wrong length")
        return rows

    def _content(self, rows: list[tuple[int, int]]) -> Iterator[bytes]:
        """A directory up to its end mark."""
        ended = False
        for piece in self._pieces(rows):
            kinds = piece[:: layout.DIRECTORY_ENTRY_BYTES]
            count = 0 if ended else kinds.find(layout.ENTRY_END)
            if count < 0:
                yield piece
                continue
            if kinds[count:].strip(b"\0"):
                raise MapError("has a directory with entries behind its end mark")
            yield piece[: count * layout.DIRECTORY_ENTRY_BYTES]
            if ended or len(kinds) - count >= _LOOK_BEHIND_ENTRIES:
                return
            ended = True

    def _pieces(self, rows: list[tuple[int, int]]) -> Iterator[bytes]:
        size = _FIRST_READ_BYTES
        for first, count in rows:
            offset = self._volume.cluster_offset(first)
            end = offset + count * self._volume.cluster_bytes
            while offset < end:
                length = min(size, end - offset)
                yield self._volume.source.read(offset, length)
                offset += length
                size = min(2 * size, _READ_BYTES_MAX)
