"""A GPT on a disk of another size: what has to be written so that both copies are where they belong.

    LBA 0  protective record    1  header    2..  entries    partitions    entries, second copy    header, last LBA

Source: UEFI specification 2.10, chapter 5 (GUID Partition Table Disk Layout); see `partitions_layout`.

Rules
- Only a table is moved that is whole in one copy, by its checksums, and of which the other is the same, or damaged.
- No partition is moved or cut: where one would reach into the second copy, the disk is too small, also a larger one.
- The first copy stays where it is, before all that is usable. Where it is damaged, its entries are written where it
  says, or over themselves, or over zeros: boot loaders of small machines stand there too.
- The second copy is written first, and the one that it takes the place of is cleared last.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from snapfs.errors import SnapfsError
from snapfs.usedmap import partitions_layout as layout
from snapfs.usedmap.partitions import GptCopy, gpt_copies, gpt_partitions
from snapfs.usedmap.result import MapError
from snapfs.usedmap.source import Source

# In the protective record: its one entry, and in that the number of sectors, which is as large as 32 bits allow.
_ENTRY: Final = layout.MBR_ENTRIES_OFFSET
_SECTORS_FIELD: Final = struct.Struct("<I")
_SECTORS_OFFSET: Final = _ENTRY + 12
_MAX_SECTORS: Final = 0xFFFFFFFF
_FIRST_ENTRIES_SECTOR: Final = 2


@dataclass(frozen=True)
class Gpt:
    """The table of a disk. `second` None: it is damaged, or not there."""

    sector_bytes: int
    first: GptCopy | None
    second: GptCopy | None
    record: bytes
    # Where the entries of the first copy are, or belong.
    first_entries_sector: int = _FIRST_ENTRIES_SECTOR

    @property
    def _copy(self) -> GptCopy:
        copy = self.first or self.second
        assert copy is not None
        return copy

    @property
    def copy_bytes(self) -> int:
        """What the second copy takes at the end of a disk."""
        return (self._entries_sectors + 1) * self.sector_bytes

    @property
    def _entries_sectors(self) -> int:
        return -(-len(self._copy.entries) // self.sector_bytes)

    def partitions_end(self) -> int:
        """The byte behind the last partition. MapError: one is outside of what is usable."""
        return max((one.end for one in gpt_partitions(self._copy, self.sector_bytes)), default=0)

    def least_bytes(self, end: int = 0) -> int:
        """How large a disk has to be: for all partitions, what ends at `end`, and a sector that is usable: before
        that is the first copy."""
        end = max(end, self.partitions_end(), (self._copy.first_usable + 1) * self.sector_bytes)
        return -(-end // self.sector_bytes) * self.sector_bytes + self.copy_bytes

    def with_first_entries(self, source: Source) -> Gpt | None:
        """The same, knowing where the entries of the first copy belong; None if nothing says it."""
        count, end = self._entries_sectors, self._copy.first_usable
        places = [self.first.entries_sector] if self.first else list(self._likely_places(source))
        for sector in places:
            if _FIRST_ENTRIES_SECTOR <= sector <= end - count:
                return replace(self, first_entries_sector=sector)
        return None

    def _likely_places(self, source: Source) -> Iterator[int]:
        magic, *_, own, _, _, _, _, at, _, _, _ = layout.GPT_HEADER.unpack(
            source.read(layout.GPT_HEADER_SECTOR * self.sector_bytes, layout.GPT_HEADER.size)
        )
        if magic == layout.GPT_MAGIC and own == layout.GPT_HEADER_SECTOR:
            yield at
        count = self._entries_sectors
        likely = [one for one in (_FIRST_ENTRIES_SECTOR, self._copy.first_usable - count) if one > 0]
        found = [(one, source.read(one * self.sector_bytes, len(self._copy.entries))) for one in likely]
        yield from (one for one, content in found if content == self._copy.entries)
        yield from (one for one, content in found if not any(content))

    def second_places(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of what is nothing but the second copy."""
        if self.second is None:
            return
        behind = max(self._copy.first_usable, self._copy.last_usable + 1)
        for sector, length in (
            (self.second.entries_sector, len(self.second.entries)),
            (self.second.own_sector, self.sector_bytes),
        ):
            if sector >= behind:
                yield sector * self.sector_bytes, length

    def moved(self, size_bytes: int) -> list[tuple[int, bytes]]:
        """(offset, content) of all that is to be written, in this order, to a disk of `size_bytes`, which is large
        enough."""
        last = size_bytes // self.sector_bytes - 1
        entries_sector = last - self._entries_sectors
        first_entries = self.first_entries_sector
        entries = self._copy.entries.ljust(self._entries_sectors * self.sector_bytes, b"\0")
        written = [
            (entries_sector, entries),
            (last, self._header(last, layout.GPT_HEADER_SECTOR, entries_sector - 1, entries_sector)),
            (first_entries, entries),
            (
                layout.GPT_HEADER_SECTOR,
                self._header(layout.GPT_HEADER_SECTOR, last, entries_sector - 1, first_entries),
            ),
            (0, self._protective_record(last)),
        ]
        found = [(sector * self.sector_bytes, content) for sector, content in written]
        for offset, length in self.second_places():
            # What the new copy does not cover itself.
            end = min(offset + length, entries_sector * self.sector_bytes)
            if end > offset:
                found.append((offset, bytes(end - offset)))
        return found

    def _header(self, own: int, other: int, last_usable: int, entries_sector: int) -> bytes:
        fields = list(layout.GPT_HEADER.unpack_from(self._copy.header))
        fields[3] = 0
        fields[5], fields[6], fields[8], fields[10] = own, other, last_usable, entries_sector
        header = bytearray(self._copy.header)
        layout.GPT_HEADER.pack_into(header, 0, *fields)
        struct.pack_into("<I", header, layout.GPT_CRC_OFFSET, zlib.crc32(header))
        return bytes(header).ljust(self.sector_bytes, b"\0")

    def _protective_record(self, last: int) -> bytes:
        """One that protects nothing but the GPT covers the disk; a hybrid one stays as it is."""
        record = bytearray(self.record)
        size = layout.MBR_ENTRY.size
        entries = [record[_ENTRY + n * size : _ENTRY + (n + 1) * size] for n in range(layout.MBR_ENTRY_COUNT)]
        _, kind, first, _ = layout.MBR_ENTRY.unpack(entries[0])
        if kind == layout.MBR_TYPE_PROTECTIVE and first == 1 and not any(map(any, entries[1:])):
            _SECTORS_FIELD.pack_into(record, _SECTORS_OFFSET, min(last, _MAX_SECTORS))
        return bytes(record)


def find_gpt(source: Source, name: str) -> Gpt | None:
    """The GPT of a disk, None without one. SnapfsError: it is not whole; `name` is for the sentence."""
    try:
        record = source.read(0, layout.MBR_BYTES)
        if not _announces_gpt(record):
            return None
        found = [Gpt(size, *gpt_copies(source, size), record) for size in layout.SECTOR_SIZES_BYTES]
        found = [gpt for gpt in found if gpt.first or gpt.second]
        if len(found) != 1:
            how = "is damaged in both copies" if not found else "is there for two sizes of sectors"
            raise SnapfsError(f"The GPT of {name} {how}; mend it with gdisk, or name a disk of the same size.")
        gpt = found[0]
        if gpt.first and gpt.second and gpt.first.entries != gpt.second.entries:
            raise SnapfsError(
                f"The two copies of the GPT of {name} differ; mend them with gdisk, or name a disk of the same size."
            )
        gpt.partitions_end()
        placed = gpt.with_first_entries(source)
    except MapError as error:
        raise SnapfsError(
            f"The partition table of {name} cannot be read: it {error}; name a disk of the same size."
        ) from error
    if placed is None:
        raise SnapfsError(
            f"The first copy of the GPT of {name} is damaged or in an unusual place, and something else may be where "
            "it belongs; mend it with gdisk, or name a disk of the same size."
        )
    return placed


def _announces_gpt(record: bytes) -> bool:
    kinds = [
        layout.MBR_ENTRY.unpack_from(record, _ENTRY + number * layout.MBR_ENTRY.size)[1]
        for number in range(layout.MBR_ENTRY_COUNT)
    ]
    return record[layout.MBR_SIGNATURE_OFFSET :] == layout.MBR_SIGNATURE and layout.MBR_TYPE_PROTECTIVE in kinds
