"""Sets of directory entries of exFAT, thousands at once: whole, of known kinds, with the right checksum.

A set is one entry for a file or directory, one for its stream, one or more for its name, perhaps some of a vendor.
What is not understood is refused, since it may have clusters of its own.

Layout and its source: `exfat_layout`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from snapfs.usedmap import exfat_layout as layout
from snapfs.usedmap.exfat_geometry import Volume
from snapfs.usedmap.result import MapError

# A stream, seventeen entries for the longest name, and room for some of vendors.
_SECONDARIES_MAX = 32
_BROKEN = "has a directory with a broken set of entries"
_STEP = layout.DIRECTORY_ENTRY_BYTES

_Numbers = NDArray[np.int64]
_Bytes = NDArray[np.uint8]
_Flags = NDArray[np.bool_]


def last_boundary(entries: bytearray) -> int:
    """Where the last set in `entries` begins, which may go on behind them (bytes)."""
    least = max(0, len(entries) - (_SECONDARIES_MAX + 2) * _STEP)
    for at in range(len(entries) - _STEP, least - 1, -_STEP):
        if entries[at] & layout.IN_USE_SECONDARY != layout.IN_USE_SECONDARY:
            return at
    raise MapError(_BROKEN)


class FileSets:
    """The sets in `entries`, which begin and end between sets.

    `streams` has one row for each stream with clusters: first cluster, number of clusters, whether they follow
    each other without a chain. `is_directory` says of each whether it is that of a directory.
    """

    def __init__(self, entries: bytearray, volume: Volume) -> None:
        self._entries: _Bytes = np.frombuffer(bytes(entries), dtype=np.uint8).reshape(-1, _STEP)
        kinds = self._entries[:, 0]
        self._files = np.flatnonzero(kinds == layout.ENTRY_FILE)
        self._counts = self._entries[self._files, 1].astype(np.int64)
        self._check_kinds(kinds)
        self._check_shape(kinds)
        self._check_sums()
        self.streams, self.is_directory = self._streams(kinds, volume)

    def _check_kinds(self, kinds: _Bytes) -> None:
        known = np.zeros(256, dtype=np.bool_)
        known[: layout.IN_USE] = True
        known[list(layout.KNOWN_ENTRIES)] = True
        if not known[kinds].all():
            raise MapError("has a directory with entries of an unknown kind")

    def _check_shape(self, kinds: _Bytes) -> None:
        """Every file is followed by its secondary entries, the first of them its stream; there are no others."""
        secondary = kinds & layout.IN_USE_SECONDARY == layout.IN_USE_SECONDARY
        before = np.concatenate(([0], np.cumsum(secondary)))
        ends = self._files + 1 + self._counts
        broken = (self._counts < 2) | (self._counts > _SECONDARIES_MAX) | (ends > len(kinds))
        if broken.any() or before[-1] != self._counts.sum():
            raise MapError(_BROKEN)
        whole = before[ends] - before[self._files + 1] == self._counts
        if not whole.all() or (kinds[self._files + 1] != layout.ENTRY_STREAM).any():
            raise MapError(_BROKEN)
        if np.count_nonzero(kinds == layout.ENTRY_STREAM) != len(self._files):
            raise MapError(_BROKEN)

    def _check_sums(self) -> None:
        for count in np.unique(self._counts).tolist():
            files = self._files[self._counts == count]
            rows = self._entries[files[:, None] + np.arange(count + 1)].reshape(len(files), -1)
            # Column after column lies together in memory.
            columns = np.ascontiguousarray(rows.T).astype(np.uint16)
            total = np.zeros(len(files), dtype=np.uint16)
            for index, column in enumerate(columns):
                if index not in layout.UNSUMMED_IN_SET:
                    total = (total >> 1 | total << 15) + column
            if (total != (columns[2] | columns[3] << 8)).any():
                raise MapError("has a directory entry with a wrong checksum")

    def _streams(self, kinds: _Bytes, volume: Volume) -> tuple[_Numbers, _Flags]:
        at = np.flatnonzero((kinds == layout.ENTRY_STREAM) | (kinds == layout.ENTRY_VENDOR_CLUSTERS))
        fields = np.frombuffer(self._entries[at].tobytes(), dtype=layout.STREAM)
        is_stream = kinds[at] == layout.ENTRY_STREAM
        is_directory = np.zeros(len(at), dtype=np.bool_)
        is_directory[is_stream] = self._entries[self._files, 4] & layout.ATTRIBUTE_DIRECTORY > 0
        first, length = fields["first"].astype(np.int64), fields["length"]
        has_clusters = first != 0
        no_room = fields["flags"] & layout.ALLOCATION_POSSIBLE == 0
        if (has_clusters & no_room).any() or (~has_clusters & ((length > 0) | is_directory)).any():
            raise MapError("has a file whose sizes contradict each other")
        cluster_bytes = np.uint64(volume.cluster_bytes)
        clusters = (length // cluster_bytes + (length % cluster_bytes > 0)).astype(np.int64)
        outside = (first < layout.FIRST_CLUSTER) | (clusters > volume.end_cluster - first)
        if (has_clusters & outside).any():
            raise MapError("has a file with clusters outside the volume")
        if (
            is_directory & ((length == 0) | (length > layout.DIRECTORY_BYTES_MAX) | (length % cluster_bytes > 0))
        ).any():
            raise MapError("has a directory of an impossible size")
        in_a_row = fields["flags"] & layout.NO_CHAIN > 0
        rows = np.stack((first, clusters, in_a_row.astype(np.int64)), axis=1)
        return rows[has_clusters], is_directory[has_clusters]
