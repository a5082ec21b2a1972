"""Partitions of an image: MBR with extended partitions, and GPT with its two copies.

Rules
1. The table is believed only as a whole: a broken GPT with a broken copy, two good copies that differ,
   or an MBR with entries that make no sense give a `MapError`, and the image counts as wholly used.
2. A partition that overlaps another, or reaches beyond the image, is listed with a `reason`
   and never looked into.
3. A GPT counts only behind a protective MBR, as it does for Linux. Where a hybrid MBR describes a stretch
   differently than the GPT does, the stretch is not trusted. A GPT that is left beside a plain MBR, or the other way
   about, is stale or is not: the same rule holds.
4. A partition whose type says that it is a piece of something else carries that as `piece_of`.
5. The chain of an extended partition has at most `_MAX_LOGICAL` links, each further on than the last.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

from snapfs.usedmap import partitions_layout as layout
from snapfs.usedmap.result import MapError
from snapfs.usedmap.source import Source

# Linux itself stops at 256 minors; a longer chain is a loop or an attack.
_MAX_LOGICAL = 256

# The specification's tables have 128 entries of 128 bytes; tools make up to a few thousand.
_MAX_ENTRIES_BYTES = 1 << 20
_MAX_ENTRY_BYTES = 4096


@dataclass
class Partition:
    """`offset` and `length` in bytes of the image; a `reason` says why it must not be looked into.

    `piece_of` is what its type says that it is a part of ("a member of an MD array"): then no filesystem in it
    is a plain one.
    """

    number: int
    offset: int
    length: int
    name: str = ""
    uuid: str = ""
    reason: str = ""
    piece_of: str = ""

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass
class PartitionTable:
    kind: str
    sector_bytes: int
    partitions: list[Partition] = field(default_factory=list)


@dataclass(frozen=True)
class _MbrEntry:
    kind: int
    first_sector: int
    sectors: int


@dataclass(frozen=True)
class GptCopy:
    """One copy of a GPT whose checksums are right; `header` is what they cover of that sector."""

    own_sector: int
    other_sector: int
    entries_sector: int
    header: bytes
    first_usable: int
    last_usable: int
    entry_bytes: int
    entries: bytes


def read_mbr(source: Source, sector_bytes: int) -> PartitionTable:
    """The partitions of a plain MBR, logical ones numbered from 5 on."""
    partitions: list[Partition] = []
    extended: list[Partition] = []
    for number, entry in enumerate(_mbr_entries(source, 0), 1):
        if entry.kind == layout.MBR_TYPE_EMPTY or entry.sectors == 0:
            continue
        if entry.kind == layout.MBR_TYPE_PROTECTIVE:
            raise MapError("has a protective entry but no readable GPT")
        if entry.first_sector == 0:
            raise MapError("has a partition that starts on the table itself")
        partition = _mbr_partition(number, entry, 0, sector_bytes)
        (extended if entry.kind in layout.MBR_TYPES_EXTENDED else partitions).append(partition)
    if len(extended) > 1:
        raise MapError("has more than one extended partition")
    outer = list(partitions)
    for container in extended:
        outer.append(container)
        partitions += _logical_partitions(source, container, sector_bytes)
    _distrust_overlaps(partitions)
    _distrust_overlaps(outer)
    for container in extended:
        _distrust_contents(container, partitions)
    _distrust_differences(partitions, _stale_gpt_partitions(source), "a GPT that is there too")
    _distrust_beyond_end(partitions, source.size_bytes)
    return PartitionTable("dos", sector_bytes, sorted(partitions, key=lambda one: one.offset))


def read_gpt(source: Source, sector_bytes: int) -> PartitionTable:
    """The partitions of a GPT; the copy at the end is used when the first is damaged."""
    hybrid = _hybrid_partitions(source, sector_bytes)
    first, second = gpt_copies(source, sector_bytes)
    if first and second and first.entries != second.entries:
        raise MapError("has two valid copies that differ")
    copy = first or second
    if copy is None:
        raise MapError("is damaged in both copies")
    partitions = gpt_partitions(copy, sector_bytes)
    _distrust_overlaps(partitions)
    _distrust_differences(partitions, hybrid, "the hybrid boot record")
    _distrust_beyond_end(partitions, source.size_bytes)
    return PartitionTable("gpt", sector_bytes, sorted(partitions, key=lambda one: one.offset))


def _mbr_entries(source: Source, offset: int) -> list[_MbrEntry]:
    sector = source.read(offset, layout.MBR_BYTES)
    if sector[layout.MBR_SIGNATURE_OFFSET :] != layout.MBR_SIGNATURE:
        raise MapError(f"has no boot record signature at {offset}")
    entries = []
    for index in range(layout.MBR_ENTRY_COUNT):
        place = layout.MBR_ENTRIES_OFFSET + index * layout.MBR_ENTRY.size
        flag, kind, first_sector, sectors = layout.MBR_ENTRY.unpack_from(sector, place)
        if flag not in layout.MBR_BOOT_FLAGS:
            raise MapError(f"has a senseless boot flag in the record at {offset}")
        entries.append(_MbrEntry(kind, first_sector, sectors))
    return entries


def _logical_partitions(source: Source, container: Partition, sector_bytes: int) -> list[Partition]:
    """The partitions in an extended one; if the chain is broken, the container itself, distrusted."""
    try:
        return _follow_chain(source, container, sector_bytes)
    except MapError as error:
        container.reason = f"its chain of logical partitions is broken: it {error}"
        return [container]


def _follow_chain(source: Source, container: Partition, sector_bytes: int) -> list[Partition]:
    logical: list[Partition] = []
    record_offset = container.offset
    for _ in range(_MAX_LOGICAL):
        entries = _mbr_entries(source, record_offset)
        data = [one for one in entries if one.sectors and not _is_link(one) and one.kind]
        links = [one for one in entries if one.sectors and _is_link(one)]
        if len(data) > 1 or len(links) > 1:
            raise MapError(f"has more than one partition or link in the record at {record_offset}")
        for one in data:
            number = layout.FIRST_LOGICAL_NUMBER + len(logical)
            partition = _mbr_partition(number, one, record_offset, sector_bytes)
            if partition.offset <= record_offset or partition.end > container.end:
                raise MapError("has a logical partition outside the extended one")
            logical.append(partition)
        if not links:
            return logical
        following = container.offset + links[0].first_sector * sector_bytes
        if not record_offset < following < container.end:
            raise MapError("has a link that does not lead onwards")
        record_offset = following
    raise MapError(f"has more than {_MAX_LOGICAL} links")


def _mbr_partition(number: int, entry: _MbrEntry, base_offset: int, sector_bytes: int) -> Partition:
    offset, length = base_offset + entry.first_sector * sector_bytes, entry.sectors * sector_bytes
    return Partition(number, offset, length, piece_of=layout.MBR_PIECE_TYPES.get(entry.kind, ""))


def _is_link(entry: _MbrEntry) -> bool:
    return entry.kind in layout.MBR_TYPES_EXTENDED


def _hybrid_partitions(source: Source, sector_bytes: int) -> list[Partition]:
    entries = _mbr_entries(source, 0)
    if all(one.kind != layout.MBR_TYPE_PROTECTIVE for one in entries):
        raise MapError("is not announced by a protective boot record")
    return [
        _mbr_partition(number, one, 0, sector_bytes)
        for number, one in enumerate(entries, 1)
        if one.kind not in (layout.MBR_TYPE_EMPTY, layout.MBR_TYPE_PROTECTIVE)
    ]


def _stale_gpt_partitions(source: Source) -> list[Partition]:
    """What a GPT describes that no protective entry announces; nothing if it makes no sense either."""
    found: list[Partition] = []
    for sector_bytes in layout.SECTOR_SIZES_BYTES:
        for copy in gpt_copies(source, sector_bytes):
            with suppress(MapError):
                found += gpt_partitions(copy, sector_bytes) if copy else []
    return found


def gpt_copies(source: Source, sector_bytes: int) -> tuple[GptCopy | None, GptCopy | None]:
    """Both copies of a GPT, None for one that is damaged or not there; they may differ."""
    last_sector = source.size_bytes // sector_bytes - 1
    first = _read_copy(source, sector_bytes, layout.GPT_HEADER_SECTOR)
    return first, _read_copy(source, sector_bytes, first.other_sector if first else last_sector)


def _read_copy(source: Source, sector_bytes: int, header_sector: int) -> GptCopy | None:
    """One copy of the GPT, or None when any of its checks fails."""
    try:
        sector = source.read(header_sector * sector_bytes, sector_bytes)
        (
            magic,
            _,
            header_bytes,
            crc,
            _,
            own,
            other,
            first_usable,
            last_usable,
            _,
            at,
            count,
            entry_bytes,
            table_crc,
        ) = layout.GPT_HEADER.unpack_from(sector)
        if magic != layout.GPT_MAGIC or own != header_sector:
            return None
        if not layout.GPT_HEADER.size <= header_bytes <= sector_bytes:
            return None
        covered = bytearray(sector[:header_bytes])
        covered[layout.GPT_CRC_OFFSET : layout.GPT_CRC_OFFSET + 4] = bytes(4)
        if zlib.crc32(covered) != crc:
            return None
        if not layout.GPT_ENTRY.size <= entry_bytes <= _MAX_ENTRY_BYTES or entry_bytes % 8:
            return None
        if count * entry_bytes > _MAX_ENTRIES_BYTES:
            return None
        if any(first_usable <= one <= last_usable for one in (own, other, at)):
            return None
        entries = source.read(at * sector_bytes, count * entry_bytes)
    except MapError:
        return None
    if zlib.crc32(entries) != table_crc:
        return None
    return GptCopy(own, other, at, bytes(sector[:header_bytes]), first_usable, last_usable, entry_bytes, entries)


def gpt_partitions(copy: GptCopy, sector_bytes: int) -> list[Partition]:
    """What a copy describes. `MapError`: a partition is outside of what is usable."""
    partitions = []
    for index in range(len(copy.entries) // copy.entry_bytes):
        kind, guid, first, last, _, name = layout.GPT_ENTRY.unpack_from(copy.entries, index * copy.entry_bytes)
        if kind == layout.GPT_TYPE_UNUSED:
            continue
        if not copy.first_usable <= first <= last <= copy.last_usable:
            raise MapError(f"has entry {index + 1} outside its usable sectors")
        text = name.decode("utf-16-le", "replace").split("\0", 1)[0]
        length = (last - first + 1) * sector_bytes
        partition = Partition(index + 1, first * sector_bytes, length, text, str(UUID(bytes_le=guid)))
        partition.piece_of = layout.GPT_PIECE_TYPES.get(str(UUID(bytes_le=kind)), "")
        partitions.append(partition)
    return partitions


def _distrust_overlaps(partitions: list[Partition]) -> None:
    reach: Partition | None = None
    for partition in sorted(partitions, key=lambda one: (one.offset, one.end)):
        if reach is not None and partition.offset < reach.end:
            for one in (reach, partition):
                one.reason = one.reason or "it overlaps another partition"
        if reach is None or partition.end > reach.end:
            reach = partition


def _distrust_contents(container: Partition, partitions: list[Partition]) -> None:
    for partition in partitions:
        if container.offset <= partition.offset < container.end:
            partition.reason = partition.reason or container.reason


def _distrust_differences(partitions: list[Partition], others: list[Partition], whose: str) -> None:
    """Distrust what the partitions of another table overlap; where both agree on the place, either type counts."""
    for partition in partitions:
        for other in others:
            if (partition.offset, partition.length) == (other.offset, other.length):
                partition.piece_of = partition.piece_of or other.piece_of
            elif partition.offset < other.end and other.offset < partition.end:
                partition.reason = partition.reason or f"{whose} describes its place differently"


def _distrust_beyond_end(partitions: list[Partition], size_bytes: int) -> None:
    for partition in partitions:
        if partition.end > size_bytes:
            partition.reason = partition.reason or "it reaches beyond the end of the image"
