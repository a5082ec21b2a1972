"""Page files and the file of hibernation in the root directory of an NTFS volume. Rules: see `swap_files`.

1. One entry of the directory leads to the file, and the only name that its record has is that one, in the root: an
   entry that was left behind by another file says nothing.
2. All clusters stand in that record, without holes, neither compressed nor encrypted.
3. That no other file claims them, and that no Windows sleeps in the volume, the map of it has proven (`ntfs`).

Layout and its sources: `ntfs_layout`.
"""

from __future__ import annotations

from typing import Final

from snapfs.usedmap import ntfs_layout as layout
from snapfs.usedmap.ntfs_hibernation import index_blocks, references_named
from snapfs.usedmap.ntfs_mft import open_records
from snapfs.usedmap.ntfs_records import (
    RecordHeader,
    Stream,
    Volume,
    checked_record,
    data_stream,
    find_attribute,
    open_mft,
    open_volume,
    resident_value,
)
from snapfs.usedmap.result import FreeMap, MapError
from snapfs.usedmap.source import Source
from snapfs.usedmap.swap_files import SwapFile

_NAMES: Final = ("pagefile.sys", "swapfile.sys", layout.HIBERNATION_FILE)


def find(source: Source, free_map: FreeMap) -> list[SwapFile]:
    volume = open_volume(source)
    mft = open_mft(volume)
    records = open_records(volume, mft).records
    blocks = list(index_blocks(volume, volume.record(mft, layout.ROOT_NO)))
    found = []
    for name in _NAMES:
        references = {reference for block in blocks for reference in references_named(block, name)}
        files = [file for reference in references if (file := _file(volume, records, reference, name))]
        if len(files) == 1:
            found.append(files[0])
    return found


def _file(volume: Volume, records: Stream, reference: int, name: str) -> SwapFile | None:
    number = reference & layout.FILE_NO_MASK
    try:
        record = checked_record(volume.raw_record(records, number), f"MFT record {number}")
        header = RecordHeader(*layout.RECORD.unpack_from(record))
        if header.use_count != reference >> layout.USE_COUNT_SHIFT or not _has_only_name(record, name):
            return None
        stream = data_stream(volume, record)
    except MapError:
        return None
    return SwapFile(f"/{name}", [(run.start, run.start + run.length) for run in stream.runs])


def _has_only_name(record: bytes, name: str) -> bool:
    """Whether it is a file with that one name, in the root directory, all of it in this record."""
    if find_attribute(record, layout.ATTRIBUTE_LIST) or find_attribute(record, layout.INDEX_ROOT, "$I30"):
        return False
    attribute = find_attribute(record, layout.FILE_NAME)
    value = resident_value(attribute) if attribute else b""
    if len(value) < layout.NAME_OFFSET:
        return False
    parent = int.from_bytes(value[:8], "little") & layout.FILE_NO_MASK
    length = value[layout.NAME_LENGTH_OFFSET]
    own = value[layout.NAME_OFFSET : layout.NAME_OFFSET + 2 * length].decode("utf-16-le", "replace")
    return parent == layout.ROOT_NO and own.lower() == name
