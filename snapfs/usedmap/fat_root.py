"""The root directory of a FAT volume as a witness: does the map fit what is in it?

Nothing on a FAT volume has a checksum, and one wrong number in the boot sector of FAT12/16 moves every
cluster. The root directory can tell:

1. Whatever it names begins in a cluster of the volume that is not free.
2. Whatever directory it names begins with an entry for itself, which a moved or resized cluster would not.

A witness, not a proof: an empty root directory says nothing.

Layout and its sources: `fat_layout`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bitarray import bitarray

from snapfs.usedmap import fat_layout as layout
from snapfs.usedmap.fat_geometry import Geometry
from snapfs.usedmap.result import MapError
from snapfs.usedmap.source import Source


class _Entry(NamedTuple):
    """A file or directory; `cluster` is 0 for an empty file."""

    name: bytes
    attributes: int
    cluster: int


def check_root(source: Source, geometry: Geometry, free: bitarray) -> None:
    """Raise `MapError` when the root directory (its first cluster) contradicts the map."""
    if geometry.root_cluster:
        _check_used(geometry, free, geometry.root_cluster)
        content = source.read(geometry.cluster_offset(geometry.root_cluster), geometry.cluster_bytes)
    else:
        content = source.read(geometry.root_offset, geometry.root_bytes)
    for entry in _entries(geometry, content):
        if entry.cluster:
            _check_used(geometry, free, entry.cluster)
        if entry.attributes & layout.ATTRIBUTE_DIRECTORY:
            _check_directory(source, geometry, entry.cluster)


def _entries(geometry: Geometry, content: bytes) -> Iterator[_Entry]:
    for at in range(0, len(content), layout.DIRECTORY_ENTRY_BYTES):
        if content[at] == layout.DIRECTORY_END:
            return
        entry = _entry(geometry, content, at)
        if content[at] != layout.ENTRY_DELETED and not entry.attributes & layout.ATTRIBUTE_LABEL:
            yield entry


def _entry(geometry: Geometry, content: bytes, at: int) -> _Entry:
    name, attributes, high, low = layout.DIRECTORY_ENTRY.unpack_from(content, at)
    return _Entry(name, attributes, high << 16 | low if geometry.kind is layout.FAT32 else low)


def _check_used(geometry: Geometry, free: bitarray, cluster: int) -> None:
    if not layout.FIRST_CLUSTER <= cluster <= geometry.last_cluster:
        raise MapError("has a root directory that points outside the volume")
    if free[cluster - layout.FIRST_CLUSTER]:
        raise MapError("has a root directory that uses clusters which its FAT calls free")


def _check_directory(source: Source, geometry: Geometry, cluster: int) -> None:
    content = source.read(geometry.cluster_offset(cluster), layout.DIRECTORY_ENTRY_BYTES)
    itself = _entry(geometry, content, 0)
    if itself.name != layout.DOT_NAME or itself.cluster != cluster:
        raise MapError("has directories that are not where its root directory says")
