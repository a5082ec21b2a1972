"""Where things are on an exFAT volume: geometry from the boot region, clusters, chains of the FAT.

Rules
1. The boot region has the right checksum, and its numbers fit each other and the source.
2. Clean: none of the flags "dirty", "media failure", "second FAT active".
3. A chain never leaves the volume. It may go in a circle: whoever follows one has to notice.
4. Following chains is bounded: pieces in all, and how often another part of the FAT has to be read.

Layout and its source: `exfat_layout`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snapfs.usedmap import exfat_layout as layout
from snapfs.usedmap.result import MapError
from snapfs.usedmap.source import Source

# Links of the FAT that are read at once, and how many such windows are kept: 16 MiB.
_WINDOW_LINKS, _WINDOWS_KEPT = 1 << 14, 256
# A few seconds of following chains; a volume that asks for more is refused, not searched for minutes. The second
# number is how many windows may be read again, once each of them has been.
_PIECES_MAX, _WINDOWS_AGAIN_MAX = 1 << 22, 1 << 16
# A row longer than this is long: the rest of it is found by numpy.
_SHORT_ROW = 32


@dataclass(frozen=True)
class _Boot:
    """The fields of the boot sector, in their order."""

    jump: bytes
    name: bytes
    zeros: bytes
    sectors: int
    fat_sector: int
    fat_sectors: int
    heap_sector: int
    cluster_count: int
    root_cluster: int
    revision: int
    flags: int
    sector_shift: int
    cluster_shift: int
    fat_count: int
    mark: int


@dataclass(frozen=True)
class Volume:
    """The geometry of a volume whose boot region is whole; clusters have the numbers that the FAT gives them."""

    source: Source
    cluster_bytes: int
    cluster_count: int
    fat_offset: int
    heap_offset: int
    root_cluster: int

    @property
    def end_cluster(self) -> int:
        """The number behind the last cluster."""
        return self.cluster_count + layout.FIRST_CLUSTER

    def cluster_offset(self, cluster: int) -> int:
        return self.heap_offset + (cluster - layout.FIRST_CLUSTER) * self.cluster_bytes

    def check_clusters(self, first: int, count: int) -> None:
        if not layout.FIRST_CLUSTER <= first <= self.end_cluster - count:
            raise MapError("has a chain of clusters that leaves the volume")


class Fat:
    """Chains of the FAT, as rows of clusters that follow each other."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._windows: OrderedDict[int, NDArray[np.uint32]] = OrderedDict()
        self._pieces_left = _PIECES_MAX
        self._reads_left = volume.end_cluster // _WINDOW_LINKS + 1 + _WINDOWS_AGAIN_MAX

    def rows(self, cluster: int) -> Iterator[tuple[int, int]]:
        """First cluster and length of each row of the chain that begins at `cluster`.

        A row ends where the part of the FAT that is looked at ends, too. A chain that goes in a circle never ends.
        """
        while cluster != layout.CHAIN_END:
            self._volume.check_clusters(cluster, 1)
            self._pieces_left -= 1
            if self._pieces_left < 0:
                raise MapError("has files in too many pieces to prove its allocation bitmap by them")
            length, following = self._row(cluster)
            yield cluster, length
            cluster = following

    def _row(self, cluster: int) -> tuple[int, int]:
        """How many clusters follow each other from `cluster` on, and what the last of them points to."""
        window, at = divmod(cluster, _WINDOW_LINKS)
        links = self._window(window)
        # Looked at one by one first: most rows are short.
        for length in range(1, _SHORT_ROW):
            following = int(links[at + length - 1])
            if following != cluster + length or at + length == len(links):
                return length, following
        rest = links[at:]
        jumps = np.flatnonzero(rest != np.arange(cluster + 1, cluster + 1 + len(rest), dtype=np.int64))
        last = int(jumps[0]) if len(jumps) else len(rest) - 1
        return last + 1, int(rest[last])

    def _window(self, number: int) -> NDArray[np.uint32]:
        links = self._windows.get(number)
        if links is not None:
            self._windows.move_to_end(number)
            return links
        self._reads_left -= 1
        if self._reads_left < 0:
            raise MapError("has files too scattered to prove its allocation bitmap by them")
        first = number * _WINDOW_LINKS
        count = min(_WINDOW_LINKS, self._volume.end_cluster - first)
        offset = self._volume.fat_offset + first * layout.FAT_ENTRY_BYTES
        raw = self._volume.source.read(offset, count * layout.FAT_ENTRY_BYTES)
        links = self._windows[number] = np.frombuffer(raw, dtype="<u4")
        if len(self._windows) > _WINDOWS_KEPT:
            self._windows.popitem(last=False)
        return links


def open_volume(source: Source) -> Volume:
    """The geometry; `MapError` when the boot region is damaged, or says that the volume is not clean."""
    boot = _Boot(*layout.BOOT.unpack(source.read(0, layout.BOOT_BYTES)))
    if (boot.jump, boot.name, boot.mark) != (layout.BOOT_JUMP, layout.BOOT_NAME, layout.BOOT_MARK):
        raise MapError("has no valid boot sector")
    low, high = layout.SECTOR_SHIFT_RANGE
    cluster_shift = boot.sector_shift + boot.cluster_shift
    if not low <= boot.sector_shift <= high or cluster_shift > layout.CLUSTER_SHIFT_MAX:
        raise MapError(f"has sectors of 2^{boot.sector_shift} and clusters of 2^{cluster_shift} bytes")
    _check_checksum(source, 1 << boot.sector_shift)
    _check_state(boot)
    _check_sizes(boot)
    if boot.sectors << boot.sector_shift > source.size_bytes:
        raise MapError("is larger than its place")
    return Volume(
        source=source,
        cluster_bytes=1 << cluster_shift,
        cluster_count=boot.cluster_count,
        fat_offset=boot.fat_sector << boot.sector_shift,
        heap_offset=boot.heap_sector << boot.sector_shift,
        root_cluster=boot.root_cluster,
    )


def _check_state(boot: _Boot) -> None:
    if boot.revision >> 8 != layout.REVISION_MAJOR:
        raise MapError(f"has the unknown revision {boot.revision >> 8}.{boot.revision & 0xFF:02}")
    if boot.fat_count != 1 or boot.flags & layout.ACTIVE_FAT:
        raise MapError("has two FATs (TexFAT), which is not supported")
    if boot.flags & layout.VOLUME_DIRTY:
        raise MapError("is marked dirty")
    if boot.flags & layout.MEDIA_FAILURE:
        raise MapError("is marked as having had media failures")


def _check_sizes(boot: _Boot) -> None:
    fat_bytes = (boot.cluster_count + layout.FIRST_CLUSTER) * layout.FAT_ENTRY_BYTES
    if (
        any(boot.zeros)
        or not 0 < boot.cluster_count <= layout.CLUSTER_COUNT_MAX
        or boot.fat_sector < layout.FAT_SECTOR_MIN
        or boot.fat_sectors << boot.sector_shift < fat_bytes
        or boot.heap_sector < boot.fat_sector + boot.fat_sectors
        or boot.sectors < boot.heap_sector + (boot.cluster_count << boot.cluster_shift)
    ):
        raise MapError("has a boot sector whose numbers contradict each other")


def _check_checksum(source: Source, sector_bytes: int) -> None:
    region = source.read(0, (layout.CHECKSUM_SECTOR + 1) * sector_bytes)
    summed = layout.CHECKSUM_SECTOR * sector_bytes
    if region[summed:] != boot_checksum(region[:summed]).to_bytes(4, "little") * (sector_bytes // 4):
        raise MapError("has a boot region with a wrong checksum")


def boot_checksum(sectors: bytes) -> int:
    """The sum of the first eleven sectors: rotate right by one bit, add the next byte."""
    total = 0
    for index, byte in enumerate(sectors):
        if index not in layout.UNSUMMED_BYTES:
            total = ((total >> 1 | (total & 1) << 31) + byte) & 0xFFFFFFFF
    return total
