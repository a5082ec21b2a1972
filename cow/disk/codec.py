"""One record: compressing, checking and parsing. The only module that knows lz4 and xxhash.

A record is a header, then the payload (lz4 block format, or the raw blocks when lz4 does not help), then
zeros up to the next multiple of 32 bytes. Its checksum (XXH3-64, with the store's seed) covers header and payload,
so a reader that got a checksum right has the very bytes that were written, for the very block it asked for.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import lz4.block
import xxhash

from cow.disk.files import Data
from cow.disk.layout import (
    RECORD,
    RECORD_ALIGN,
    RECORD_CHECKSUM_OFFSET,
    RECORD_MAGIC,
    RECORD_VERSION,
    SEED_SHIFT,
    SEGMENT_BYTES,
    RecordFlag,
)
from cow.errors import Damaged

_CHECKSUM = struct.Struct("<Q")
# Acceleration of lz4 that compresses best, and what stands for "do not compress at all".
COMPRESS_WELL, STORE_RAW = 1, 0
_FLAGS = {flag.value: flag for flag in RecordFlag}
_U64 = (1 << 64) - 1


class RecordHeader(NamedTuple):
    """What a record says of itself; sizes in bytes."""

    block_no: int
    block_count: int
    generation: int
    flag: RecordFlag
    raw_bytes: int
    payload_bytes: int
    checksum: int

    @property
    def length(self) -> int:
        """Bytes the record takes in its segment, padding included."""
        return -(-(RECORD.size + self.payload_bytes) // RECORD_ALIGN) * RECORD_ALIGN


def encode(
    block_no: int, block_count: int, generation: int, raw: Data, acceleration: int = COMPRESS_WELL, *, seed: int
) -> bytes:
    """The bytes of one record, padded. `acceleration` as of lz4: higher is faster and larger; 0 stores raw.

    `seed`: the store's (`Header.record_seed`). Whoever does not know it makes nothing that passes for a record,
    whatever he writes into the image.
    """
    flag, payload = RecordFlag.RAW, raw
    if acceleration != STORE_RAW:
        packed = lz4.block.compress(raw, mode="fast", acceleration=acceleration, store_size=False)
        if len(packed) < len(raw):
            flag, payload = RecordFlag.LZ4, packed
    header = RECORD.pack(
        RECORD_MAGIC, RECORD_VERSION, flag, block_count, generation, block_no, len(raw), len(payload), 0
    )
    digest = xxhash.xxh3_64(header[:RECORD_CHECKSUM_OFFSET], seed)
    digest.update(payload)
    padding = bytes(-(RECORD.size + len(payload)) % RECORD_ALIGN)
    return b"".join((header[:RECORD_CHECKSUM_OFFSET], _CHECKSUM.pack(digest.intdigest()), payload, padding))


def encode_lost(block_no: int, block_count: int, generation: int, *, seed: int) -> bytes:
    """A record that says that these blocks are lost; it has no payload."""
    header = RECORD.pack(RECORD_MAGIC, RECORD_VERSION, RecordFlag.LOST, block_count, generation, block_no, 0, 0, 0)
    header = header[:RECORD_CHECKSUM_OFFSET]
    return b"".join(
        (header, _CHECKSUM.pack(xxhash.xxh3_64_intdigest(header, seed)), bytes(-RECORD.size % RECORD_ALIGN))
    )


def payload_bytes(record: bytes) -> int:
    """What a record counts for against the limit, and what is given back for it later: without its padding."""
    return parse_header(record).payload_bytes


def parse_header(data: Data) -> RecordHeader:
    """The header at the start of `data`; Damaged when it is none. The checksum is not looked at."""
    if len(data) < RECORD.size:
        raise Damaged("the record is cut short")
    magic, version, flag, count, generation, block_no, raw_bytes, payload_bytes, checksum = RECORD.unpack_from(data)
    if magic != RECORD_MAGIC or version != RECORD_VERSION or flag not in _FLAGS:
        raise Damaged("there is no record where the index says")
    if not count or payload_bytes > raw_bytes or raw_bytes > SEGMENT_BYTES:
        raise Damaged("the record's header makes no sense")
    return RecordHeader(block_no, count, generation, _FLAGS[flag], raw_bytes, payload_bytes, checksum)


def decode(data: Data, *, seed: int) -> tuple[RecordHeader, Data]:
    """Header and raw blocks of the record at the start of `data`; Damaged unless the checksum fits.

    Of a LOST record there are no blocks.
    """
    header = parse_header(data)
    view = memoryview(data)
    payload = view[RECORD.size : RECORD.size + header.payload_bytes]
    if len(payload) < header.payload_bytes:
        raise Damaged("the record is cut short")
    digest = xxhash.xxh3_64(view[:RECORD_CHECKSUM_OFFSET], seed)
    digest.update(payload)
    if digest.intdigest() != header.checksum:
        raise Damaged("the record's checksum does not fit")
    if header.flag is not RecordFlag.LZ4:
        return header, payload
    try:
        raw = lz4.block.decompress(payload, uncompressed_size=header.raw_bytes)
    except lz4.block.LZ4BlockError as error:
        raise Damaged("the record does not decompress") from error
    if len(raw) != header.raw_bytes:
        raise Damaged("the record decompresses to another size")
    return header, raw


def slot_seed(generation: int, seq: int) -> int:
    """What the checksum of staging slot `seq` starts from: no slot passes for one of another lap or cut."""
    return (generation << SEED_SHIFT) + seq & _U64


def slot_checksums(data: memoryview, block_bytes: int, seed: int) -> list[int]:
    """XXH3-64 of each block of `data`, seeded with `seed`, `seed` + 1 and so on."""
    digest = xxhash.xxh3_64_intdigest
    if len(data) == block_bytes:
        return [digest(data, seed)]
    starts = range(0, len(data), block_bytes)
    return [digest(data[at : at + block_bytes], number) for number, at in enumerate(starts, seed)]


def checksum_stream() -> xxhash.xxh3_128:
    """A running XXH3-128 for the seals of whole files."""
    return xxhash.xxh3_128()


def checksum(data: Data) -> int:
    """XXH3-64 of a header or another small structure."""
    return xxhash.xxh3_64_intdigest(data)
