"""The map of used blocks of a whole image.

Rules
1. All blocks start used. Only `_clear_free` clears bits, only from a map that its reader fully trusts, and only
   inside the region of that filesystem. **A used block taken for free is data loss**; the reverse costs space.
2. Partition tables, boot areas, gaps, backup headers, whatever follows a filesystem in its partition: used.
3. Whatever goes wrong in a parser makes its region wholly used, with the reason. Nothing else is affected.
4. An image, or a partition, that looks like a filesystem and like a partitioned disk at once is wholly used: one of
   the two is stale, and nobody can say which. So is one with two filesystems.
5. A partition whose type says that it is a piece of something else is wholly used, whatever its first blocks look
   like: those of a mirror look like a plain filesystem, and what was there before may have left its own.
6. The image must not change during the scan: scan a snapshot view, or an image that nobody writes to.
"""

from __future__ import annotations

from collections.abc import Collection

from bitarray.util import ones

from snapfs.usedmap import partitions, probe
from snapfs.usedmap.leftovers import first_within
from snapfs.usedmap.partition_traces import traces_of_table
from snapfs.usedmap.partitions_layout import SECTOR_SIZES_BYTES
from snapfs.usedmap.readers import READERS, SWAP_KIND, WHOLLY_USED_KINDS
from snapfs.usedmap.result import ImageMap, MapError, Region
from snapfs.usedmap.source import Source

_MIN_BLOCK_BYTES, _MAX_BLOCK_BYTES = 512, 1 << 20

# True: every filesystem of the image was frozen by us for this cut; else the offsets of those that were.
FrozenByUs = bool | Collection[int]


def scan(
    fd: int,
    size_bytes: int,
    block_bytes: int,
    *,
    sector_bytes: int | None = None,
    skip_swap: bool = False,
    frozen_by_us: FrozenByUs = False,
) -> ImageMap:
    """Which blocks of the image behind `fd` hold something, and what the image consists of.

    `sector_bytes` is the logical sector size of a block device; an image file has none (None: found out from the
    partition table). With `skip_swap` the inside of swap space counts as free. `frozen_by_us` lets filesystems
    without a journal, which are never marked clean while mounted, be trusted. Never raises for what is in the image.
    """
    if not _MIN_BLOCK_BYTES <= block_bytes <= _MAX_BLOCK_BYTES or block_bytes & (block_bytes - 1):
        raise ValueError(f"blocks of {block_bytes} bytes: it takes a power of two from 512 to 1048576")
    image_map = ImageMap(block_bytes, size_bytes, ones(-(-size_bytes // block_bytes), "little"))
    return _Scan(fd, image_map, sector_bytes, skip_swap, frozen_by_us).run()


class _Scan:
    def __init__(
        self, fd: int, image_map: ImageMap, sector_bytes: int | None, skip_swap: bool, frozen_by_us: FrozenByUs
    ) -> None:
        self._fd = fd
        self._map = image_map
        self._source = Source(fd, image_map.size_bytes)
        self._sector_sizes = SECTOR_SIZES_BYTES if sector_bytes is None else (sector_bytes,)
        self._skip_swap = skip_swap
        self._frozen_by_us = frozen_by_us

    def run(self) -> ImageMap:
        whole = Region("unknown", 0, self._map.size_bytes)
        try:
            signature = probe.probe_filesystem(self._fd, 0, self._map.size_bytes)
            table = None if signature.kind else self._read_table()
        except MapError as error:
            whole.reason = f"the image {error}"
            self._map.regions.append(whole)
            return self._map
        if table is not None:
            self._scan_table(table)
        else:
            self._map.regions.append(whole)
            self._identify(whole, signature, "the image")
            self._look_for_partitions(whole)
            self._clear_free(whole)
        return self._map

    def _read_table(self) -> partitions.PartitionTable | None:
        """The partition table, None without one; `MapError` when there is one that makes no sense."""
        found = [(size, probe.probe_table(self._fd, 0, self._map.size_bytes, size)) for size in self._sector_sizes]
        kinds = {kind for _, kind in found if kind}
        if "gpt" in kinds:
            return self._only_gpt([size for size, kind in found if kind == "gpt"])
        if kinds - {"dos"}:
            raise MapError(f"has a partition table of kind {min(kinds - {'dos'})}, which is not looked into")
        tables = [partitions.read_mbr(self._source, size) for size, kind in found if kind]
        if len(tables) > 1:
            return self._likelier_table(tables)
        return tables[0] if tables else None

    def _only_gpt(self, sector_sizes: list[int]) -> partitions.PartitionTable:
        if len(sector_sizes) > 1:
            raise MapError("has partition tables for two sector sizes")
        return partitions.read_gpt(self._source, sector_sizes[0])

    def _likelier_table(self, tables: list[partitions.PartitionTable]) -> partitions.PartitionTable:
        """An MBR does not tell its sector size: it is the one by which something is where a partition starts."""
        likely = [table for table in tables if any(map(self._holds_something, table.partitions))]
        if len(likely) > 1:
            raise MapError("has a partition table that makes sense for two sector sizes")
        return likely[0] if likely else tables[0]

    def _holds_something(self, partition: partitions.Partition) -> bool:
        if partition.end > self._map.size_bytes:
            return False
        try:
            return bool(probe.probe_filesystem(self._fd, partition.offset, partition.length).kind)
        except MapError:
            return True

    def _scan_table(self, table: partitions.PartitionTable) -> None:
        covered = 0
        for partition in table.partitions:
            self._add_gap(table.kind, covered, partition.offset)
            self._scan_partition(partition)
            covered = max(covered, partition.end)
        self._add_gap(table.kind, covered, self._map.size_bytes)

    def _add_gap(self, table_kind: str, start: int, end: int) -> None:
        end = min(end, self._map.size_bytes)
        if start >= end:
            return
        if start == 0:
            reason = "it holds the partition table and perhaps a boot loader"
            self._map.regions.append(Region(table_kind, start, end - start, reason=reason))
        else:
            reason = "it lies outside every partition"
            self._map.regions.append(Region("gap", start, end - start, reason=reason))

    def _scan_partition(self, partition: partitions.Partition) -> None:
        length = min(partition.length, max(self._map.size_bytes - partition.offset, 0))
        region = Region("unknown", partition.offset, length, reason=partition.reason)
        region.partition_number, region.partition_name = partition.number, partition.name
        self._map.regions.append(region)
        if region.reason:
            return
        try:
            signature = probe.probe_filesystem(self._fd, region.offset, region.length)
        except MapError as error:
            region.reason = f"the partition {error}"
            return
        self._identify(region, signature, "the partition")
        if partition.piece_of and region.kind not in WHOLLY_USED_KINDS:
            region.reason = f"its type says that it is {partition.piece_of}"
        self._clear_free(region)

    def _identify(self, region: Region, signature: probe.Signature, what: str) -> None:
        region.kind = signature.kind or "unknown"
        region.label, region.uuid = signature.label, signature.uuid
        if not signature.kind:
            region.reason = "nothing that snapfs knows is there"
        elif signature.kind == SWAP_KIND and not self._skip_swap:
            region.reason = "swap space counts as used unless it is to be skipped"
        elif signature.kind not in READERS:
            region.reason = WHOLLY_USED_KINDS.get(signature.kind, f"no map is read from {signature.kind}")
        elif signature.others:
            also = " and ".join(sorted(signature.others))
            region.reason = f"{what} carries the signatures of more than one filesystem, {also} too"
        elif self._is_partitioned(region):
            region.reason = f"{what} looks like {signature.kind} and like a partitioned disk at once"

    def _look_for_partitions(self, whole: Region) -> None:
        """A disk whose partition table was lost looks like what it was formatted as before."""
        if whole.reason:
            return
        try:
            within = first_within(self._source)
        except MapError as error:
            whole.reason = f"the image {error}"
            return
        if within is not None:
            whole.reason = f"something else begins at {within} in it, as where a lost partition was"

    def _is_partitioned(self, region: Region) -> bool:
        """Whether something in a region that carries a filesystem's signature speaks for a table of partitions."""
        if traces_of_table(self._source.window(region.offset, region.length)):
            return True
        # An MBR, which that has looked at, is also seen in every boot record without partitions.
        try:
            kinds = {probe.probe_table(self._fd, region.offset, region.length, size) for size in self._sector_sizes}
        except MapError:
            return True
        return bool(kinds - {"", "dos"})

    def _clear_free(self, region: Region) -> None:
        """Read the map of the filesystem in `region` and clear what it proves free."""
        if region.reason:
            return
        source = self._source.window(region.offset, region.length)
        try:
            free_map = READERS[region.kind](source, frozen_by_us=self._is_frozen(region))
            # Arithmetic on arrays, which takes longer to load than all that an image without filesystems needs.
            from snapfs.usedmap import fold

            fold.clear_free_blocks(self._map, free_map, region.offset, region.length)
        except MapError as error:
            region.reason = f"the {region.kind} {error}"
        except Exception as error:  # a bug of a parser must cost space, never data
            region.reason = f"the {region.kind} could not be understood ({type(error).__name__}: {error})"
        else:
            region.state = "trusted"
            region.block_bytes = free_map.unit_bytes
            region.free_bytes = free_map.free.count() * free_map.unit_bytes

    def _is_frozen(self, region: Region) -> bool:
        if isinstance(self._frozen_by_us, bool):
            return self._frozen_by_us
        return region.offset in self._frozen_by_us
