"""Free clusters of an exFAT volume, from its allocation bitmap.

Rules
1. The boot region is whole, and the volume clean (`exfat_geometry`).
2. One allocation bitmap, named in the root directory, as long as the number of clusters asks for, at the end
   of a chain of exactly its clusters.
3. The bitmap calls exactly those clusters used that the directories claim (`exfat_tree`), its own, and those of the
   up-case table, each of them once. It carries no checksum: that is the proof that it has lost nothing a
   file needs. The percentage in the boot sector proves nothing: Linux never writes it.
4. Everything outside the cluster heap is outside the map: used.

Layout and its source: `exfat_layout`.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitarray import bitarray

from snapfs.usedmap import exfat_layout as layout
from snapfs.usedmap.claims import Claims
from snapfs.usedmap.exfat_geometry import Fat, Volume, open_volume
from snapfs.usedmap.exfat_tree import claim_tree
from snapfs.usedmap.result import FreeMap, MapError
from snapfs.usedmap.source import Source

# Formatters put the entries of the bitmap and the up-case table first; a search ends here.
_ROOT_SEARCH_BYTES = 1 << 20
# The table maps each of 65536 characters to another one, two bytes each.
_UPCASE_BYTES_MAX = 128 << 10

# First cluster and length of rows of clusters.
_Rows = list[tuple[int, int]]


@dataclass(frozen=True)
class _Root:
    """What the root directory says about system structures."""

    bitmap_cluster: int
    bitmap_bytes: int
    upcase_cluster: int
    upcase_bytes: int


def read_free_map(source: Source, *, frozen_by_us: bool = False) -> FreeMap:
    """Free clusters; `frozen_by_us` changes nothing: a driver that is frozen has still marked the volume."""
    volume = open_volume(source)
    fat = Fat(volume)
    root = _read_root(volume, fat)
    if root.bitmap_bytes != (volume.cluster_count + 7) // 8:
        raise MapError("has an allocation bitmap of a wrong length")
    if not 0 < root.upcase_bytes <= _UPCASE_BYTES_MAX:
        raise MapError("has an up-case table of a wrong length")
    rows = _rows(volume, fat, root.bitmap_cluster, root.bitmap_bytes, "allocation bitmap")
    own = rows + _rows(volume, fat, root.upcase_cluster, root.upcase_bytes, "up-case table")
    _prove(volume, fat, rows, own, root.bitmap_bytes)
    # One bitmap at a time: a proof consumes what it is given, and a bitmap can be half a gigabyte.
    free = _read_bitmap(volume, rows, root.bitmap_bytes)
    free.invert()
    return FreeMap(volume.cluster_bytes, volume.heap_offset, free)


def _prove(volume: Volume, fat: Fat, rows: _Rows, own: _Rows, bitmap_bytes: int) -> None:
    """Raise `MapError` unless the bitmap in `rows` calls used exactly what the volume itself and its files claim."""
    used = _read_bitmap(volume, rows, bitmap_bytes)
    for first, length in own:
        if used.find(0, first - layout.FIRST_CLUSTER, first - layout.FIRST_CLUSTER + length) >= 0:
            raise MapError("has an allocation bitmap that calls its own structures free")
    claims = Claims(used, lambda cluster: _is_free(volume, rows, cluster))
    for first, length in own:
        claims.add(first - layout.FIRST_CLUSTER, first - layout.FIRST_CLUSTER + length)
    claim_tree(volume, fat, claims)
    claims.check_none_left()


def _is_free(volume: Volume, rows: _Rows, cluster: int) -> bool:
    """What the bitmap in `rows` says of one cluster, counted from the first."""
    at = cluster // 8
    for first, length in rows:
        if at < length * volume.cluster_bytes:
            byte = volume.source.read(volume.cluster_offset(first) + at, 1)[0]
            return not byte >> cluster % 8 & 1
        at -= length * volume.cluster_bytes
    return False


def _read_root(volume: Volume, fat: Fat) -> _Root:
    """Search the beginning of the root directory for the bitmap and the up-case table."""
    bitmaps: list[tuple[int, int]] = []
    upcases: list[tuple[int, int]] = []
    for entry in _root_entries(volume, fat):
        flags, cluster, length = layout.BITMAP_ENTRY.unpack_from(entry)
        if entry[0] == layout.ENTRY_BITMAP and flags & layout.SECOND_BITMAP:
            raise MapError("has two allocation bitmaps (TexFAT), which is not supported")
        if entry[0] == layout.ENTRY_BITMAP:
            bitmaps.append((cluster, length))
        elif entry[0] == layout.ENTRY_UPCASE:
            upcases.append((cluster, length))
    if len(bitmaps) != 1 or len(upcases) != 1:
        raise MapError("does not name one allocation bitmap and one up-case table in its root directory")
    return _Root(*bitmaps[0], *upcases[0])


def _root_entries(volume: Volume, fat: Fat) -> list[bytes]:
    """Entries up to the end mark or the end of the search."""
    step = layout.DIRECTORY_ENTRY_BYTES
    entries: list[bytes] = []
    for first, count in fat.rows(volume.root_cluster):
        length = min(count * volume.cluster_bytes, _ROOT_SEARCH_BYTES - len(entries) * step)
        content = volume.source.read(volume.cluster_offset(first), length)
        for at in range(0, length, step):
            if content[at] == layout.ENTRY_END:
                return entries
            entries.append(content[at : at + step])
        if len(entries) * step >= _ROOT_SEARCH_BYTES:
            break
    return entries


def _rows(volume: Volume, fat: Fat, first: int, length: int, what: str) -> _Rows:
    """The clusters of a system structure of `length` bytes, whose chain has to end with them."""
    left = -(-length // volume.cluster_bytes)
    rows = []
    for row in fat.rows(first):
        left -= row[1]
        rows.append(row)
        if left < 0:
            break
    if left:
        raise MapError(f"has an {what} whose chain of clusters has a wrong length")
    return rows


def _read_bitmap(volume: Volume, rows: _Rows, length: int) -> bitarray:
    """The allocation bitmap: a set bit is a used cluster."""
    bits = bitarray(8 * length, endian="little")
    with memoryview(bits) as view:
        done = 0
        for first, count in rows:
            count = min(count * volume.cluster_bytes, length - done)
            with view[done : done + count] as part:
                volume.source.readinto(volume.cluster_offset(first), part)
            done += count
    del bits[volume.cluster_count :]
    return bits
