"""The directories of a FAT volume as witnesses: does the map fit what is in them?

Nothing on a FAT volume has a checksum, one wrong number in the boot sector of FAT12/16 moves every cluster,
and a FAT without a second one can lose an entry unnoticed. The directories can tell:

1. Whatever they name begins in a cluster of the volume that is not free.
2. Every directory but the root begins with an entry for itself, which a moved or resized cluster would not.
3. With two FATs the first `_CLUSTERS_ENOUGH` clusters of directories are heard, which is quick. An only FAT
   has no other witness: all directories are, and too many of them are refused.

Layout and its sources: `fat_layout`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
from bitarray import bitarray
from numpy.typing import NDArray

from snapfs.usedmap import fat_layout as layout
from snapfs.usedmap.fat_geometry import Geometry
from snapfs.usedmap.result import MapError
from snapfs.usedmap.source import Source

_CLUSTERS_ENOUGH = 256
_CLUSTERS_MAX = 1 << 16

_Entries = NDArray[np.void]


def check_tree(source: Source, geometry: Geometry, free: bitarray) -> None:
    """Raise `MapError` when the directories contradict the map."""
    _Tree(source, geometry, free).check()


class _Tree:
    """One walk through the directories, breadth first, each cluster at most once."""

    def __init__(self, source: Source, geometry: Geometry, free: bitarray) -> None:
        self._source = source
        self._geometry = geometry
        self._free = free
        self._heard = bitarray(len(free), endian="little")
        self._heard.setall(0)
        self._waiting: deque[int] = deque()

    def check(self) -> None:
        if self._geometry.root_cluster:
            self._check_used(self._geometry.root_cluster)
            self._hear_directory(self._geometry.root_cluster)
        else:
            self._hear(self._source.read(self._geometry.root_offset, self._geometry.root_bytes))
        while self._waiting and not self._heard_enough():
            cluster = self._waiting.popleft()
            self._check_itself(cluster)
            self._hear_directory(cluster)

    def _heard_enough(self) -> bool:
        count = self._heard.count()
        if len(self._geometry.fat_offsets) > 1:
            return count >= _CLUSTERS_ENOUGH
        if count > _CLUSTERS_MAX:
            raise MapError("has only one FAT, and too many directories to check it by them")
        return False

    def _check_itself(self, cluster: int) -> None:
        content = self._source.read(self._geometry.cluster_offset(cluster), layout.DIRECTORY_ENTRY_BYTES)
        itself = _entries(content)
        if itself["name"][0] != layout.DOT_NAME or self._first_clusters(itself)[0] != cluster:
            raise MapError("has directories that are not where others say")

    def _hear_directory(self, first: int) -> None:
        for cluster in self._chain(first):
            offset = self._geometry.cluster_offset(cluster)
            if self._hear(self._source.read(offset, self._geometry.cluster_bytes)) or self._heard_enough():
                return

    def _chain(self, cluster: int) -> Iterator[int]:
        """The clusters of a directory; ends where they were heard before, so a circle ends too."""
        while not self._heard[cluster - layout.FIRST_CLUSTER]:
            self._heard[cluster - layout.FIRST_CLUSTER] = 1
            yield cluster
            cluster = self._next(cluster)
            if cluster >= self._geometry.kind.mask - layout.SPECIAL_BELOW_MASK:
                return
            self._check_used(cluster)

    def _next(self, cluster: int) -> int:
        kind = self._geometry.kind
        bit = cluster * kind.bits
        raw = self._source.read(self._geometry.fat_offsets[0] + bit // 8, (kind.bits + 7) // 8)
        return int.from_bytes(raw, "little") >> bit % 8 & kind.mask

    def _hear(self, content: bytes) -> bool:
        """Check the entries of one piece of a directory; True at the end mark."""
        entries = _entries(content)
        first_bytes = np.frombuffer(content, dtype=np.uint8)[:: layout.DIRECTORY_ENTRY_BYTES]
        ends = np.flatnonzero(first_bytes == layout.DIRECTORY_END)
        count = int(ends[0]) if len(ends) else len(entries)
        entries, first_bytes = entries[:count], first_bytes[:count]
        # Entries for the directory itself and its parent begin with a dot; no other name does.
        counts = (first_bytes != layout.ENTRY_DELETED) & (first_bytes != layout.DOT_NAME[0])
        counts &= (entries["attributes"] & layout.ATTRIBUTE_LABEL) == 0
        entries = entries[counts]
        clusters = self._first_clusters(entries)
        is_directory = (entries["attributes"] & layout.ATTRIBUTE_DIRECTORY) != 0
        for cluster in clusters[(clusters != 0) | is_directory].tolist():
            self._check_used(cluster)
        self._waiting.extend(clusters[is_directory].tolist())
        return len(ends) > 0

    def _first_clusters(self, entries: _Entries) -> NDArray[np.uint32]:
        low = entries["cluster_low"].astype(np.uint32)
        if self._geometry.kind is not layout.FAT32:
            return low
        return low | entries["cluster_high"].astype(np.uint32) << np.uint32(16)

    def _check_used(self, cluster: int) -> None:
        if not layout.FIRST_CLUSTER <= cluster <= self._geometry.last_cluster:
            raise MapError("has a directory that points outside the volume")
        if self._free[cluster - layout.FIRST_CLUSTER]:
            raise MapError("has a directory that uses clusters which its FAT calls free")


def _entries(content: bytes) -> _Entries:
    return np.frombuffer(content, dtype=layout.DIRECTORY_ENTRY)
