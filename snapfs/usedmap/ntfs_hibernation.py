"""Does the root directory of an NTFS volume hold the memory of a hibernated Windows?

Rules
1. Hibernated Windows goes on from its memory, not from the disk: allocations may exist only there.
2. hiberfil.sys counts when its first bytes say so; switched off or awake they are zero or different.
3. Every record of the directory index is searched, unused ones too; an entry whose file is gone is old and
   says nothing.
4. A directory or file in a form that is not understood is refused.

Layout and its sources: `ntfs_layout`.
"""

from __future__ import annotations

from collections.abc import Iterator

from snapfs.usedmap import ntfs_layout as layout
from snapfs.usedmap.ntfs_records import (
    RecordHeader,
    Stream,
    Volume,
    find_attribute,
    resident_value,
    stream_of,
    undo_sequence,
    whole_record,
)
from snapfs.usedmap.result import MapError

# A root directory of tens of thousands of entries; more than that is refused, not searched for seconds.
_INDEX_BYTES_MAX = 16 << 20
_INDEX_RECORD_BYTES = (512, 65536)


def check_not_hibernated(volume: Volume, mft: Stream) -> None:
    """Raise `MapError` when a hibernation image is on the volume."""
    for block in index_blocks(volume, volume.record(mft, layout.ROOT_NO)):
        for reference in references_named(block, layout.HIBERNATION_FILE):
            _check_file(volume, mft, reference)


def index_blocks(volume: Volume, root: bytes) -> Iterator[bytes]:
    """The entries in the record itself, then every index record of the directory."""
    if find_attribute(root, layout.ATTRIBUTE_LIST):
        raise MapError("has a root directory spread over several MFT records, which is not supported")
    index_root = find_attribute(root, layout.INDEX_ROOT, "$I30")
    if index_root is None:
        raise MapError("has no root directory")
    value = resident_value(index_root)
    yield value
    allocation = find_attribute(root, layout.INDEX_ALLOCATION, "$I30")
    if allocation is None:
        return
    if len(value) < layout.INDEX_ROOT_HEADER.size:
        raise MapError("has a broken root directory")
    (block_bytes,) = layout.INDEX_ROOT_HEADER.unpack_from(value)
    low, high = _INDEX_RECORD_BYTES
    if block_bytes & (block_bytes - 1) or not low <= block_bytes <= high:
        raise MapError(f"has directory records of {block_bytes} bytes")
    stream = stream_of(volume, allocation)
    if stream.initialised_bytes > _INDEX_BYTES_MAX:
        raise MapError("has too large a root directory to look for a hibernated Windows in it")
    for offset in range(0, stream.initialised_bytes - block_bytes + 1, block_bytes):
        yield _index_block(volume.read(stream, offset, block_bytes))


def _index_block(raw: bytes) -> bytes:
    mark, sequence_offset, sequence_count = layout.INDEX_RECORD.unpack_from(raw)
    if mark != layout.INDEX_MARK:
        return b""  # never written: no entries
    block = undo_sequence(raw, sequence_offset, sequence_count, "root directory")
    _, entries_bytes = layout.INDEX_NODE.unpack_from(block, layout.INDEX_RECORD.size)
    # What lies behind the last entry is left over from deleted ones, perhaps in part.
    return block[: layout.INDEX_RECORD.size + entries_bytes]


def references_named(block: bytes, name: str) -> Iterator[int]:
    """File references of entries of that name, in any case of its letters; also of entries that are over."""
    folded, wanted = block.lower(), name.encode("utf-16-le")
    at = folded.find(wanted)
    while at >= 0:
        entry = at - layout.NAME_OFFSET - layout.INDEX_ENTRY.size
        name_length = block[at - layout.NAME_OFFSET + layout.NAME_LENGTH_OFFSET] if entry >= 0 else 0
        if name_length == len(name):
            yield layout.INDEX_ENTRY.unpack_from(block, entry)[0]
        at = folded.find(wanted, at + 1)


def _check_file(volume: Volume, mft: Stream, reference: int) -> None:
    file_no = reference & layout.FILE_NO_MASK
    record = whole_record(volume.raw_record(mft, file_no), f"MFT record {file_no}")
    header = RecordHeader(*layout.RECORD.unpack_from(record))
    if not header.in_use or header.use_count != reference >> layout.USE_COUNT_SHIFT:
        return  # deleted, its record free or given to another file
    data = find_attribute(record, layout.DATA)
    if data is None:
        raise MapError("has a hiberfil.sys in a form that is not supported")
    if not data.non_resident:
        return  # smaller than the head of a hibernation image
    stream = stream_of(volume, data, partial=True)
    if stream.initialised_bytes < 4:
        return  # made, and never written
    if volume.read(stream, 0, 4) in layout.HIBERNATION_MARKS:
        raise MapError("holds a hibernated Windows")
