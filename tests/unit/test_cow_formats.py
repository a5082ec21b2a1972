"""Every structure of the store, encoded and decoded from one table of values and bytes."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from cow.disk.codec import (
    STORE_RAW,
    RecordHeader,
    checksum,
    decode,
    encode,
    parse_header,
    payload_bytes,
    slot_checksums,
    slot_seed,
)
from cow.disk.header import SPARE_BYTES, CutHeader, Header, decode_header, encode_header, with_holder
from cow.disk.layout import (
    HEADER,
    HEADER_CUT,
    LOST_ENTRY,
    MAX_DEVICE_ID_BYTES,
    MAX_HOLDERS,
    MAX_NAME_BYTES,
    MAX_PATH_BYTES,
    RECORD,
    RECORD_ALIGN,
    SEGMENT_BYTES,
    Counter,
    CutCounter,
    Durability,
    Place,
    Protect,
    RecordFlag,
    pack_place,
    unpack_place,
)
from cow.errors import Damaged, StoreError
from snapfs.servers.list_of_cuts import MAX_CUTS

NOISE = random.Random(3).randbytes(4096)
SEED = 0


@pytest.mark.parametrize(
    ("place", "entry"),
    [
        (Place(1, 0, 64), 0x8000_0020_0000_0002),
        (Place(2, 32, 96), 0x8000_0040_0001_0003),
        (Place(33_554_431, SEGMENT_BYTES - 32, 65_535 * 32), 0xBFFF_FFFF_FFFF_FFFF),
    ],
)
def test_index_entries_of_records(place: Place, entry: int) -> None:
    assert pack_place(place) == entry
    assert unpack_place(entry) == place


def test_a_length_is_rounded_up_to_whole_units() -> None:
    assert unpack_place(pack_place(Place(7, 320, 41))) == Place(7, 320, 64)


def test_a_lost_entry_names_a_segment_that_never_is() -> None:
    assert unpack_place(LOST_ENTRY).segment_no == 0


RECORDS = [
    (
        RecordHeader(5, 1, 1, RecordFlag.RAW, 32, 32, 0x24F5_220D_2401_3BA9),
        bytes(range(32)),
        STORE_RAW,
        "31534652 01 00 0100 01000000 0500000000000000 20000000 20000000 00000000 a93b01240d22f524"
        + bytes(range(32)).hex()
        + "00" * 24,
    ),
    (
        RecordHeader(1 << 32, 2, 7, RecordFlag.LZ4, 1024, 14, 0x8791_6E53_5D0D_30C8),
        bytes(1024),
        1,
        "31534652 01 01 0200 07000000 0000000001000000 00040000 0e000000 00000000 c8300d5d536e9187"
        "1f000100ffffffea500000000000" + "00" * 10,
    ),
]


@pytest.mark.parametrize(("header", "raw", "acceleration", "text"), RECORDS, ids=["raw", "lz4"])
def test_records(header: RecordHeader, raw: bytes, acceleration: int, text: str) -> None:
    data = encode(header.block_no, header.block_count, header.generation, raw, acceleration, seed=SEED)
    assert data.hex() == text.replace(" ", "")
    found, content = decode(data, seed=SEED)
    assert (found, bytes(content)) == (header, raw)
    assert header.length == len(data)


def test_what_does_not_compress_is_stored_raw() -> None:
    data = encode(0, 1, 1, NOISE, seed=SEED)
    assert parse_header(data).flag is RecordFlag.RAW
    assert payload_bytes(data) == len(NOISE)


def test_every_flipped_bit_of_a_record_is_damage() -> None:
    data = encode(3, 1, 1, bytes(512) + NOISE[:512], seed=SEED)
    length = RECORD.size + parse_header(data).payload_bytes
    for at in range(length):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(Damaged):
            decode(damaged, seed=SEED)


def test_every_shorter_record_is_damage() -> None:
    data = encode(3, 1, 1, bytes(512), seed=SEED)
    for length in range(RECORD.size + parse_header(data).payload_bytes):
        with pytest.raises(Damaged):
            decode(data[:length], seed=SEED)


def test_records_are_aligned() -> None:
    for length in range(1, 200, 7):
        assert len(encode(0, 1, 1, NOISE[:length], seed=SEED)) % RECORD_ALIGN == 0


def test_slot_checksums_depend_on_cut_and_lap() -> None:
    data = memoryview(NOISE + NOISE)
    sums = {
        tuple(slot_checksums(data, 4096, slot_seed(generation, seq)))
        for generation, seq in ((1, 0), (1, 2), (2, 0), (1, 16))
    }
    assert len({checksum for pair in sums for checksum in pair}) == 8
    assert slot_checksums(data[4096:], 4096, slot_seed(1, 1)) == slot_checksums(data, 4096, slot_seed(1, 0))[1:]


HOLDERS = ("0123456789abcdef" * 2, "fedcba9876543210" * 2)
HEADERS = [
    (
        Header(
            block_bytes=4096,
            image_bytes=1 << 40,
            image_dev=1,
            image_ino=2,
            staging_slots=16,
            durability=Durability.POWER,
            protect=Protect.USED,
            is_device=True,
            store_id=b"s" * 16,
            boot_id=b"b" * 16,
            image_path="/ä",
            device_id="WD-1",
            cuts=(CutHeader(8, 7, 5, 6, 0o644, 3, 4, b"n" * 16, "daily", is_hidden=True, holders=HOLDERS),),
        ),
        "736e617066735354 05000000 00100000 0000000000010000 0100000000000000 0200000000000000 1000000000000000"
        "01 01 01 04 03000000 01000000" + "73" * 16 + "62" * 16 + "2fc3a4" + "57442d31"
        "0800000000000000 0700000000000000 0500000000000000 0600000000000000 a4010000 03000000 04000000 01050200"
        + "6e" * 16
        + "6461696c79"
        + "".join(HOLDERS)
        + "dbdc28cade80a1e5",
    )
]


@pytest.mark.parametrize(("header", "text"), HEADERS)
def test_headers(header: Header, text: str) -> None:
    data = bytes.fromhex(text.replace(" ", ""))
    assert encode_header(header).hex() == data.hex()
    assert decode_header(data, "s") == header


def test_every_flipped_bit_of_a_header_is_damage() -> None:
    data = encode_header(HEADERS[0][0])
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 1 << at % 8
        with pytest.raises(StoreError):
            decode_header(bytes(damaged), "s")


def test_every_shorter_header_is_damage() -> None:
    data = encode_header(HEADERS[0][0])
    for length in range(len(data)):
        with pytest.raises(StoreError, match="damaged header"):
            decode_header(data[:length], "s")


def test_several_cuts_with_names_survive() -> None:
    cut = HEADERS[0][0].cut
    names = ("a", "", "\udcff" * MAX_NAME_BYTES, "ä")
    cuts = tuple(replace(cut, generation=at, name=name, is_hidden=at == 2) for at, name in enumerate(names, 1))
    header = replace(HEADERS[0][0], cuts=cuts)
    assert decode_header(encode_header(header), "s") == header


@pytest.mark.parametrize("holder", ["", "0" * 31, "0" * 33, "G" * 32, "A" * 32, "é" * 32])
def test_what_is_no_holder_is_refused(holder: str) -> None:
    with pytest.raises(ValueError, match="32 hex digits are a holder"):
        with_holder(HEADERS[0][0].cut, holder)


def test_there_are_only_so_many_holders() -> None:
    cut = replace(HEADERS[0][0].cut, holders=tuple(f"{number:032x}" for number in range(MAX_HOLDERS)))
    assert with_holder(cut, cut.holders[0]) is cut
    with pytest.raises(ValueError, match="there can be no more"):
        with_holder(cut, "f" * 32)


def test_the_spare_room_is_enough_for_the_longest_header() -> None:
    holders = tuple(f"{number:032x}" for number in range(MAX_HOLDERS))
    cut = replace(HEADERS[0][0].cut, name="n" * MAX_NAME_BYTES, holders=holders)
    longest = replace(
        HEADERS[0][0], image_path="p" * MAX_PATH_BYTES, device_id="d" * MAX_DEVICE_ID_BYTES, cuts=(cut,) * MAX_CUTS
    )
    assert len(encode_header(longest)) <= SPARE_BYTES


@pytest.mark.parametrize("count", [0, 2, 1 << 31])
def test_a_list_of_another_length_is_damage(count: int) -> None:
    data = bytearray(encode_header(HEADERS[0][0]))[:-8]
    data[56:60] = count.to_bytes(4, "little")
    data += checksum(bytes(data)).to_bytes(8, "little")
    with pytest.raises(StoreError, match="damaged header"):
        decode_header(bytes(data), "s")


def test_a_newer_format_is_named() -> None:
    data = bytearray(encode_header(HEADERS[0][0]))
    data[8] = 9
    with pytest.raises(StoreError, match="newer snapfs \\(format 9, this one knows 5\\)"):
        decode_header(bytes(data), "s")


def test_a_path_of_any_bytes_survives() -> None:
    header = replace(HEADERS[0][0], image_path="/\udcff.img")
    assert decode_header(encode_header(header), "s") == header


@pytest.mark.parametrize("device_id", ["wwid naa.5000c5001234", "\udcff" * 255])
def test_the_identity_of_a_device_survives(device_id: str) -> None:
    header = replace(HEADERS[0][0], device_id=device_id)
    assert decode_header(encode_header(header), "s") == header


def test_sizes_of_the_structures_are_those_of_the_format() -> None:
    assert (HEADER.size, HEADER_CUT.size, RECORD.size) == (92, 64, 40)
    for numbers in (Counter, CutCounter):
        assert len(set(numbers)) == len(numbers.__members__), "two numbers share a place"


def test_a_record_of_who_does_not_know_the_seed_is_none() -> None:
    forged = encode(3, 1, 1, NOISE, seed=7)
    assert decode(forged, seed=7)[1] == NOISE
    with pytest.raises(Damaged, match="checksum does not fit"):
        decode(forged, seed=8)
