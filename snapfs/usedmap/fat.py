"""Free clusters of a FAT12, FAT16 or FAT32 volume, from its file allocation tables.

Rules
1. Clean: the state byte and the bits of FAT entry 1 that the kind has say so, in every FAT.
2. All FATs are equal; entry 0 repeats the medium of the boot sector, so the FAT is where it is thought to be.
3. A cluster is free when its entry is 0. Anything else, bad clusters too, is used.
4. Chains make sense: every link points to a cluster of the volume that is not free, no two to the same.
5. Files begin in used clusters and directories are where others say (`fat_tree`).
6. Boot sectors, FATs, root directory of FAT12/16 and a remainder at the end are outside the map: used.

The FAT is read in pieces and judged by whole-array operations. Most entries are free or point to their
successor; only the others (ends of chains and jumps) are looked at one by one.

Layout and its sources: `fat_layout`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from bitarray import bitarray
from numpy.typing import NDArray

from snapfs.usedmap import fat_layout as layout
from snapfs.usedmap.fat_geometry import Geometry, read_geometry
from snapfs.usedmap.fat_tree import check_tree
from snapfs.usedmap.result import FreeMap, MapError
from snapfs.usedmap.source import Source

Entries = NDArray[np.uint32]

# Entries judged at once: a piece of both FATs and the arrays made from it stay in the processor's cache.
_PIECE_ENTRIES = 1 << 18
# How much of the unused end of an only FAT is looked at: more than a wrong number of sectors brings in.
_REST_BYTES = 1 << 16


def read_free_map(source: Source, *, frozen_by_us: bool = False) -> FreeMap:
    """Free clusters; `frozen_by_us` changes nothing: a driver that is frozen has still marked the volume."""
    geometry = read_geometry(source)
    if geometry.state & layout.STATE_NOT_CLEAN:
        raise MapError("is marked as mounted or damaged in its boot sector")
    for fat_offset in geometry.fat_offsets:
        _check_first_entries(geometry, source.read(fat_offset, 8))
    _check_only_fat(source, geometry)
    free = _Judge(geometry).judge(_pieces(source, geometry))
    check_tree(source, geometry, free)
    return FreeMap(geometry.cluster_bytes, geometry.data_offset, free)


def _check_first_entries(geometry: Geometry, head: bytes) -> None:
    kind = geometry.kind
    value = int.from_bytes(head, "little")
    first, second = value & kind.mask, value >> kind.bits
    if first != (kind.mask & ~0xFF) | geometry.medium:
        raise MapError("has no FAT where its boot sector says")
    if second & kind.clean != kind.clean:
        raise MapError("is marked dirty")
    if second & kind.no_errors != kind.no_errors:
        raise MapError("is marked as damaged")


def _check_only_fat(source: Source, geometry: Geometry) -> None:
    """An only FAT that is followed by a second one, or ends in something else than zeros, is not what it seems.

    Its size or number would be wrong, and with it the place of every cluster.
    """
    if len(geometry.fat_offsets) > 1:
        return
    first = geometry.fat_offsets[0]
    end = first + geometry.fat_bytes
    if source.read(first, layout.BOOT_BYTES) == source.read(end, layout.BOOT_BYTES):
        raise MapError("has more FATs than its boot sector says")
    entries_end = first + -(-(geometry.last_cluster + 1) * geometry.kind.bits // 8)
    if any(source.read(entries_end, min(_REST_BYTES, end - entries_end))):
        raise MapError("has a FAT that goes on behind its last cluster")


def _pieces(source: Source, geometry: Geometry) -> Iterator[Entries | None]:
    """The entries from cluster 2 on, a piece at a time; None for a piece of free clusters only."""
    if geometry.kind is layout.FAT12:
        yield _fat12_entries(source, geometry)
        return
    width = geometry.kind.bits // 8
    dtype = np.dtype(f"<u{width}")
    zeros = bytes(_PIECE_ENTRIES * width)
    buffers = [bytearray(len(zeros)) for _ in geometry.fat_offsets]
    for first in range(0, geometry.cluster_count, _PIECE_ENTRIES):
        count = min(_PIECE_ENTRIES, geometry.cluster_count - first)
        if count < _PIECE_ENTRIES:
            buffers = [bytearray(count * width) for _ in buffers]
        for fat_offset, buffer in zip(geometry.fat_offsets, buffers, strict=True):
            source.readinto(fat_offset + (layout.FIRST_CLUSTER + first) * width, buffer)
        _check_equal(buffers)
        if count == _PIECE_ENTRIES and buffers[0] == zeros:
            yield None
        else:
            yield np.frombuffer(buffers[0], dtype=dtype) & np.uint32(geometry.kind.mask)


def _fat12_entries(source: Source, geometry: Geometry) -> Entries:
    """Twelve bits each, two entries in three bytes."""
    pairs = (geometry.cluster_count + layout.FIRST_CLUSTER + 1) // 2
    length = min(3 * pairs, geometry.fat_bytes)
    fats = [source.read(offset, length) for offset in geometry.fat_offsets]
    # The medium and the state of entries 0 and 1 were looked at before, in each FAT.
    _check_equal([fat[3:] for fat in fats])
    triples = np.frombuffer(fats[0].ljust(3 * pairs, b"\0"), dtype=np.uint8).astype(np.uint32).reshape(-1, 3)
    entries = np.empty((pairs, 2), dtype=np.uint32)
    entries[:, 0] = triples[:, 0] | (triples[:, 1] & 15) << 8
    entries[:, 1] = triples[:, 1] >> 4 | triples[:, 2] << 4
    return entries.reshape(-1)[layout.FIRST_CLUSTER :][: geometry.cluster_count]


def _check_equal(fats: list[Any]) -> None:
    if any(fat != fats[0] for fat in fats[1:]):
        raise MapError("has FATs that differ from each other")


class _Judge:
    """Collects free clusters, and those that links point to, over the pieces; bit 0 is cluster 2 in both."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._special = geometry.kind.mask - layout.SPECIAL_BELOW_MASK
        self._free = np.zeros((geometry.cluster_count + 7) // 8, dtype=np.uint8)
        self._linked = np.zeros_like(self._free)
        self._link_count = 0
        # Whether the entry before this piece points to the first of this piece.
        self._links_first = False

    def judge(self, pieces: Iterator[Entries | None]) -> bitarray:
        """All pieces in their order; the map of free clusters."""
        first = 0
        for entries in pieces:
            if entries is None:
                self._all_free(first)
                first += _PIECE_ENTRIES
            else:
                self._judge_piece(entries, first)
                first += len(entries)
        if self._links_first:
            raise MapError("has a chain of clusters that leaves the volume")
        if (self._linked & self._free).any():
            raise MapError("has a chain of clusters that runs into a free one")
        if int(np.bitwise_count(self._linked).sum()) != self._link_count:
            raise MapError("has chains of clusters that run into each other")
        free = bitarray(endian="little")
        free.frombytes(self._free.tobytes())
        del free[self._geometry.cluster_count :]
        return free

    def _all_free(self, first: int) -> None:
        self._free[first // 8 : (first + _PIECE_ENTRIES) // 8] = 0xFF
        self._linked[first // 8] |= self._links_first
        self._links_first = False

    def _judge_piece(self, entries: Entries, first: int) -> None:
        is_free = entries == layout.FREE
        next_cluster = first + layout.FIRST_CLUSTER + 1
        in_row = entries == np.arange(next_cluster, next_cluster + len(entries), dtype=np.uint32)
        jumps = entries[~(is_free | in_row)]
        piece = slice(first // 8, (first + len(entries) + 7) // 8)
        self._free[piece] = np.packbits(is_free, bitorder="little")
        self._link_count += int(np.count_nonzero(in_row))
        self._linked[piece] |= np.packbits(np.concatenate(([self._links_first], in_row[:-1])), bitorder="little")
        self._links_first = bool(in_row[-1])
        self._note_jumps(jumps[jumps < self._special])

    def _note_jumps(self, clusters: Entries) -> None:
        if not len(clusters):
            return
        if clusters.min() < layout.FIRST_CLUSTER or clusters.max() > self._geometry.last_cluster:
            raise MapError("has a chain of clusters that leaves the volume")
        bits = clusters - layout.FIRST_CLUSTER
        np.bitwise_or.at(self._linked, bits >> 3, np.left_shift(1, bits & 7).astype(np.uint8))
        self._link_count += len(clusters)
