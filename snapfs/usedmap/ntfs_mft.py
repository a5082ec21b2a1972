"""All of $MFT: its records wherever they are, and which of them are in use.

Rules
1. The run list of $MFT may go on in extension records, named by the attribute list of record 0. Each of them is
   in the part that is known before it: they are read in the order of the clusters they describe.
2. The pieces follow each other without a gap, and together they are as long as record 0 says.
3. $MFT's own bitmap says which records are in use. None may be in use behind the last record that was written.

Layout and its sources: `ntfs_layout`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bitarray import bitarray

from snapfs.usedmap import ntfs_layout as layout
from snapfs.usedmap.ntfs_records import (
    Attribute,
    RecordHeader,
    Run,
    Stream,
    Volume,
    attributes,
    find_attribute,
    resident_value,
    runs_of,
    stream_of,
    whole_record,
)
from snapfs.usedmap.result import MapError

# Windows allows no longer attribute list.
_LIST_BYTES_MAX = 256 << 10
# A hundred times more than any real one: how often each extension record is looked for in those before it.
_EXTENSIONS_MAX, _RUNS_MAX = 1024, 1 << 14
# Half a billion records; their bitmap takes 64 MiB.
_RECORDS_MAX = 1 << 29


@dataclass(frozen=True)
class RecordTable:
    """`records` is the whole of $MFT; bit i of `in_use` is set when record i is. One bit per written record."""

    records: Stream
    in_use: bitarray


def open_records(volume: Volume, mft: Stream) -> RecordTable:
    """Complete `mft`, which reaches as far as record 0 describes it."""
    entries = list(_list_entries(volume, volume.record(mft, layout.MFT_NO)))
    records = _whole_stream(volume, mft, entries)
    count = records.initialised_bytes // volume.record_bytes
    if count > _RECORDS_MAX:
        raise MapError("has too many MFT records to prove its $Bitmap by them")
    in_use = _records_in_use(volume, records, entries)
    if in_use.find(1, count) >= 0:
        raise MapError("has MFT records in use that were never written")
    if len(in_use) < count:
        raise MapError("has an MFT larger than the bitmap of its records")
    del in_use[count:]
    return RecordTable(records, in_use)


def _list_entries(volume: Volume, record: bytes) -> Iterator[tuple[int, int, int]]:
    """(type, first cluster of the file, record) of the unnamed attributes in the attribute list."""
    attribute = find_attribute(record, layout.ATTRIBUTE_LIST)
    if attribute is None:
        return
    content = _content(volume, attribute)
    at = 0
    while at + layout.LIST_ENTRY.size <= len(content):
        type_code, length, name_length, first, reference = layout.LIST_ENTRY.unpack_from(content, at)
        if length < layout.LIST_ENTRY.size:
            raise MapError("has a broken attribute list in its MFT")
        if not name_length:
            yield type_code, first, reference & layout.FILE_NO_MASK
        at += length


def _content(volume: Volume, attribute: Attribute) -> bytes:
    if not attribute.non_resident:
        return resident_value(attribute)
    stream = stream_of(volume, attribute)
    if stream.size_bytes > _LIST_BYTES_MAX:
        raise MapError("has too long an attribute list in its MFT")
    return volume.read(stream, 0, stream.size_bytes)


def _whole_stream(volume: Volume, mft: Stream, entries: list[tuple[int, int, int]]) -> Stream:
    """`mft` and what follows it in extension records."""
    runs = list(mft.runs)
    clusters = sum(run.length for run in runs)
    extensions = sorted((first, number) for type_code, first, number in entries if type_code == layout.DATA and first)
    if len(extensions) > _EXTENSIONS_MAX:
        raise MapError("has an MFT in too many pieces")
    for _, number in extensions:
        known = Stream(tuple(runs), mft.size_bytes, mft.initialised_bytes, mft.allocated_bytes)
        more = _extension_runs(volume, known, number, clusters)
        runs += more
        clusters += sum(run.length for run in more)
        if clusters > volume.cluster_count or len(runs) > _RUNS_MAX:
            raise MapError("has an MFT in too many pieces")
    if clusters * volume.cluster_bytes != mft.allocated_bytes:
        raise MapError("has an MFT of which a part is missing")
    return Stream(tuple(runs), mft.size_bytes, mft.initialised_bytes, mft.allocated_bytes)


def _extension_runs(volume: Volume, mft: Stream, number: int, first: int) -> list[Run]:
    """Runs of $MFT in extension record `number`, which must go on at cluster `first` of the file."""
    for item in attributes(_extension(volume, mft, number)):
        if item.type_code == layout.DATA and not item.name and item.non_resident:
            start, runs = runs_of(volume, item)
            if start == first:
                return runs
    raise MapError("has an MFT of which a part is missing")


def _extension(volume: Volume, mft: Stream, number: int) -> bytes:
    """An extension record of record 0."""
    record = whole_record(volume.raw_record(mft, number), f"MFT record {number}")
    header = RecordHeader(*layout.RECORD.unpack_from(record))
    if not header.in_use or header.base & layout.FILE_NO_MASK != layout.MFT_NO:
        raise MapError("has an MFT of which a part is missing")
    return record


def _records_in_use(volume: Volume, mft: Stream, entries: list[tuple[int, int, int]]) -> bitarray:
    numbers = [number for type_code, _, number in entries if type_code == layout.BITMAP] or [layout.MFT_NO]
    attribute = find_attribute(_extension(volume, mft, numbers[0]), layout.BITMAP)
    if len(numbers) > 1 or attribute is None:
        raise MapError("has a bitmap of MFT records in a form that is not supported")
    bits = bitarray(endian="little")
    if not attribute.non_resident:
        bits.frombytes(resident_value(attribute))
        return bits
    stream = stream_of(volume, attribute)
    if stream.initialised_bytes > _RECORDS_MAX // 8:
        raise MapError("has too many MFT records to prove its $Bitmap by them")
    for offset, length in volume.pieces(stream, 0, stream.initialised_bytes):
        piece = bytearray(length)
        volume.source.readinto(offset, piece)
        bits.frombytes(piece)
    return bits
