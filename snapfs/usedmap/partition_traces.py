"""What speaks for a partition table where the signature of a filesystem is.

A disk that was formatted as a whole and partitioned later, or the other way about, carries both: partitioning
leaves a boot sector's BPB where it is, and formatting leaves the second header of a GPT. Tools that find the
filesystem first do not look for a table any more. Only one of the two is alive, and nothing on the disk says which.

Rules
1. One trace is enough, and it need not be a whole or a valid table: a false alarm costs space.
2. An entry of an MBR counts from sector 1 on. One that begins at sector 0 describes the filesystem itself, as
   those do that `mkfs.fat --mbr` writes for Windows.
3. A header of a GPT counts where it says that it is itself: the first or the last sector of *this* stretch. The one
   at the end of the disk does not make its last partition a disk.
"""

from __future__ import annotations

from collections.abc import Iterator

from snapfs.usedmap import partitions_layout as layout
from snapfs.usedmap.result import MapError
from snapfs.usedmap.source import Source


def traces_of_table(source: Source) -> bool:
    """Whether an MBR with partitions, or a header of a GPT, is in its place."""
    return _has_mbr_entry(source) or any(_gpt_headers(source))


def _has_mbr_entry(source: Source) -> bool:
    try:
        sector = source.read(0, layout.MBR_BYTES)
    except MapError:
        return False
    if sector[layout.MBR_SIGNATURE_OFFSET :] != layout.MBR_SIGNATURE:
        return False
    return any(_is_plausible(entry, source.size_bytes) for entry in _entries(sector))


def _entries(sector: bytes) -> Iterator[tuple[int, ...]]:
    for index in range(layout.MBR_ENTRY_COUNT):
        yield layout.MBR_ENTRY.unpack_from(sector, layout.MBR_ENTRIES_OFFSET + index * layout.MBR_ENTRY.size)


def _is_plausible(entry: tuple[int, ...], size_bytes: int) -> bool:
    """Boot code, which filesystems have there, hardly ever looks like a partition that begins on the disk."""
    flag, kind, first_sector, sectors = entry
    if flag not in layout.MBR_BOOT_FLAGS or kind == layout.MBR_TYPE_EMPTY or not sectors:
        return False
    return 0 < first_sector * min(layout.SECTOR_SIZES_BYTES) < size_bytes


def _gpt_headers(source: Source) -> Iterator[bool]:
    for sector_bytes in layout.SECTOR_SIZES_BYTES:
        last_sector = source.size_bytes // sector_bytes - 1
        for sector_no in (layout.GPT_HEADER_SECTOR, last_sector):
            yield _is_gpt_header(source, sector_bytes, sector_no)


def _is_gpt_header(source: Source, sector_bytes: int, sector_no: int) -> bool:
    try:
        fields = layout.GPT_HEADER.unpack(source.read(sector_no * sector_bytes, layout.GPT_HEADER.size))
    except MapError:
        return False
    magic, own_sector = fields[0], fields[layout.GPT_OWN_SECTOR_FIELD]
    return bool(magic == layout.GPT_MAGIC and own_sector == sector_no)
