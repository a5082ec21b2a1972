"""What an image consists of: one filesystem, or a table and the partitions behind it.

Rules
1. An image, or a partition, that looks like a filesystem and like a partitioned disk at once is not believed: one of
   the two is stale, and nobody can say which. Neither is one with two filesystems.
2. Nor is a partition whose type says that it is a piece of something else, whatever its first blocks look like:
   those of a mirror look like a plain filesystem, and what was there before may have left its own.
3. What is not believed, and what holds no filesystem with a map, carries a `reason`. No map is read here.
4. The image must not change meanwhile: look at a snapshot view, or at an image that nobody writes to.
"""

from __future__ import annotations

from snapfs.usedmap import partitions, probe
from snapfs.usedmap.leftovers import first_within
from snapfs.usedmap.partition_traces import traces_of_table
from snapfs.usedmap.partitions_layout import SECTOR_SIZES_BYTES
from snapfs.usedmap.readers import READERS, SWAP_KIND, WHOLLY_USED_KINDS
from snapfs.usedmap.result import MapError, Region
from snapfs.usedmap.source import Source


def find_regions(
    fd: int, size_bytes: int, *, sector_bytes: int | None = None, skip_swap: bool = False
) -> list[Region]:
    """The regions of the image behind `fd`, in their order; those without a `reason` are filesystems, or swap space
    with `skip_swap`, that a map can be read from. `sector_bytes` as of `scan`. Never raises for what is in the image.
    """
    return _Look(fd, size_bytes, sector_bytes, skip_swap).run()


class _Look:
    def __init__(self, fd: int, size_bytes: int, sector_bytes: int | None, skip_swap: bool) -> None:
        self._fd = fd
        self._size_bytes = size_bytes
        self._source = Source(fd, size_bytes)
        self._sector_sizes = SECTOR_SIZES_BYTES if sector_bytes is None else (sector_bytes,)
        self._skip_swap = skip_swap
        self._regions: list[Region] = []

    def run(self) -> list[Region]:
        whole = Region("unknown", 0, self._size_bytes)
        try:
            signature = probe.probe_filesystem(self._fd, 0, self._size_bytes)
            table = None if signature.kind else self._read_table()
        except MapError as error:
            whole.reason = f"the image {error}"
            return [whole]
        if table is not None:
            self._look_at_table(table)
            return self._regions
        self._identify(whole, signature, "the image")
        self._look_for_partitions(whole)
        return [whole]

    def _read_table(self) -> partitions.PartitionTable | None:
        """The partition table, None without one; `MapError` when there is one that makes no sense."""
        found = [(size, probe.probe_table(self._fd, 0, self._size_bytes, size)) for size in self._sector_sizes]
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
        if partition.end > self._size_bytes:
            return False
        try:
            return bool(probe.probe_filesystem(self._fd, partition.offset, partition.length).kind)
        except MapError:
            return True

    def _look_at_table(self, table: partitions.PartitionTable) -> None:
        covered = 0
        for partition in table.partitions:
            self._add_gap(table.kind, covered, partition.offset)
            self._look_at_partition(partition)
            covered = max(covered, partition.end)
        self._add_gap(table.kind, covered, self._size_bytes)

    def _add_gap(self, table_kind: str, start: int, end: int) -> None:
        end = min(end, self._size_bytes)
        if start >= end:
            return
        if start == 0:
            reason = "it holds the partition table and perhaps a boot loader"
            self._regions.append(Region(table_kind, start, end - start, reason=reason))
        else:
            reason = "it lies outside every partition"
            self._regions.append(Region("gap", start, end - start, reason=reason))

    def _look_at_partition(self, partition: partitions.Partition) -> None:
        length = min(partition.length, max(self._size_bytes - partition.offset, 0))
        region = Region("unknown", partition.offset, length, reason=partition.reason)
        region.partition_number, region.partition_name = partition.number, partition.name
        self._regions.append(region)
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
