"""Reading btrfs trees: logical addresses, verified nodes, whole levels at a time.

Every node must carry the right checksum, filesystem, address, owner, generation and level, and its keys must be in
order and start with the key that led to it. So no node can be reached twice, and a walk ends.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import google_crc32c
import numpy as np
import xxhash
from numpy.typing import NDArray

from snapfs.usedmap import btrfs_layout as layout
from snapfs.usedmap.result import MapError
from snapfs.usedmap.source import Source

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Chunk:
    """`length` bytes of the logical address space and where they are on the device, once or twice."""

    start: int
    length: int
    stripes: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + self.length


class ChunkMap:
    """From logical addresses to places on the device."""

    def __init__(self, chunks: list[Chunk]) -> None:
        self.chunks = sorted(chunks, key=lambda chunk: chunk.start)
        self.starts = np.array([chunk.start for chunk in self.chunks], np.int64)
        self.ends = np.array([chunk.end for chunk in self.chunks], np.int64)
        if (self.starts[1:] < self.ends[:-1]).any():
            raise MapError("has chunks that overlap")

    def chunk_numbers(self, starts: Numbers, lengths: Numbers) -> Numbers:
        """The index of the chunk that each extent lies in, wholly."""
        numbers = np.searchsorted(self.starts, starts, side="right") - 1
        if (numbers < 0).any() or (starts + lengths > self.ends[numbers]).any():
            raise MapError("has an extent outside its chunks")
        return numbers.astype(np.int64)

    def place(self, address: int, length: int) -> int:
        """Where the first copy of these bytes is."""
        number = bisect_right(self.chunks, address, key=lambda chunk: chunk.start) - 1
        chunk = self.chunks[number] if number >= 0 else None
        if chunk is None or address + length > chunk.end:
            raise MapError("has a tree that leads outside its chunks")
        return chunk.stripes[0] + address - chunk.start


@dataclass(frozen=True)
class Root:
    """Where a tree starts."""

    owner: int
    address: int
    level: int
    generation: int


@dataclass(frozen=True)
class Leaf:
    """`items` are the keys and places of the items, `raw` is the node."""

    items: NDArray[np.void]
    raw: bytes

    def data(self, index: int) -> bytes:
        item = self.items[index]
        start = layout.NODE_HEADER_BYTES + int(item["data_offset"])
        end = start + int(item["data_bytes"])
        if end > len(self.raw):
            raise MapError("has an item outside its node")
        return self.raw[start:end]


class TreeReader:
    """Reads nodes of the filesystem `fsid` behind `source`."""

    def __init__(self, source: Source, node_bytes: int, checksum_type: int, fsid: bytes) -> None:
        self._source = source
        self._node_bytes = node_bytes
        self._checksum_type = checksum_type
        self._fsid = fsid

    def leaves(self, chunks: ChunkMap, root: Root) -> Iterator[Leaf]:
        """All leaves of the tree, in the order of their keys."""
        pointers = [(root.address, root.generation, b"")]
        for level in range(root.level, 0, -1):
            below: list[tuple[int, int, bytes]] = []
            for address, generation, key in pointers:
                below += self._pointers(chunks, root, address, generation, level, key)
            self._check_size(len(below))
            pointers = below
        last_key = b""
        for address, generation, key in pointers:
            raw, count = self._node(chunks, root, address, generation, 0)
            items = _table(raw, layout.LEAF_ITEM, count)
            last_key = _check_keys(items, key, last_key)
            yield Leaf(items, raw)

    def _pointers(
        self, chunks: ChunkMap, root: Root, address: int, generation: int, level: int, key: bytes
    ) -> list[tuple[int, int, bytes]]:
        raw, count = self._node(chunks, root, address, generation, level)
        table = _table(raw, layout.NODE_POINTER, count)
        if not count:
            raise MapError("has an empty node in a tree")
        _check_keys(table, key, b"")
        keys = [_sortable(row) for row in table]
        return list(zip(table["block"].tolist(), table["generation"].tolist(), keys, strict=True))

    def _node(self, chunks: ChunkMap, root: Root, address: int, generation: int, level: int) -> tuple[bytes, int]:
        """The node and the number of its items, after all checks."""
        raw = self._source.read(chunks.place(address, self._node_bytes), self._node_bytes)
        check_checksum(raw, self._checksum_type, f"node at {address}")
        fsid, own_address, own_generation, owner, count, own_level = layout.NODE_HEADER.unpack_from(raw)
        if (fsid, own_address, own_level, owner) != (self._fsid, address, level, root.owner):
            raise MapError(f"has a misplaced node at {address}")
        if own_generation != generation:
            raise MapError(f"has a node at {address} that was not written when its tree was")
        return raw, count

    def _check_size(self, count: int) -> None:
        if count > self._source.size_bytes // self._node_bytes:
            raise MapError("has a tree that is larger than itself")


def check_checksum(raw: bytes, checksum_type: int, what: str) -> None:
    """`MapError` unless the structure has the right checksum over all that follows it."""
    body = raw[layout.CHECKSUM_BYTES :]
    if checksum_type == layout.CHECKSUM_CRC32C:
        actual = int(google_crc32c.value(body)).to_bytes(4, "little")
    elif checksum_type == layout.CHECKSUM_XXHASH64:
        actual = xxhash.xxh64_intdigest(body).to_bytes(8, "little")
    elif checksum_type == layout.CHECKSUM_SHA256:
        actual = hashlib.sha256(body).digest()
    elif checksum_type == layout.CHECKSUM_BLAKE2B:
        actual = hashlib.blake2b(body, digest_size=32).digest()
    else:
        raise MapError("uses an unknown kind of checksum")
    if raw[: len(actual)] != actual:
        raise MapError(f"has a wrong checksum in the {what}")


def _table(raw: bytes, row: np.dtype[np.void], count: int) -> NDArray[np.void]:
    if layout.NODE_HEADER_BYTES + count * row.itemsize > len(raw):
        raise MapError("has a node with more items than fit")
    return np.frombuffer(raw, row, count, layout.NODE_HEADER_BYTES)


def _check_keys(table: NDArray[np.void], first_key: bytes, previous_key: bytes) -> bytes:
    """Keys rise strictly, from `first_key` (when given) and above `previous_key`; returns the last one."""
    if not len(table):
        return previous_key
    first, last = _sortable(table[0]), _sortable(table[-1])
    if (first_key and first != first_key) or first <= previous_key:
        raise MapError("has a tree out of order")
    objectids, kinds, offsets = table["objectid"], table["type"], table["offset"]
    same_object = objectids[1:] == objectids[:-1]
    same_kind = same_object & (kinds[1:] == kinds[:-1])
    rising = (
        (objectids[1:] > objectids[:-1])
        | (same_object & (kinds[1:] > kinds[:-1]))
        | (same_kind & (offsets[1:] > offsets[:-1]))
    )
    if not rising.all():
        raise MapError("has a tree out of order")
    return last


def _sortable(row: np.void) -> bytes:
    """A key as bytes that sort as keys do."""
    return int(row["objectid"]).to_bytes(8, "big") + bytes([row["type"]]) + int(row["offset"]).to_bytes(8, "big")
