"""NTFS: $Bitmap is believed only as far as the records of the MFT bear it out."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from bitarray import bitarray
from bitarray.util import intervals
from foreign_images import (
    MemoryImage,
    copy_image,
    damage_bitmap,
    digests,
    fill,
    frees_only,
    mounted,
    poison,
    read_map,
)
from ntfs_images import (
    MIB,
    RECORD_BYTES,
    attribute_offset,
    fragment,
    is_extension,
    make_ntfs,
    number_of,
    opened,
    read_record,
    record_numbers,
    record_offset,
    refusal,
    write_at,
)

from snapfs.usedmap import ntfs_layout as layout
from snapfs.usedmap.ntfs import read_free_map
from snapfs.usedmap.ntfs_records import data_stream
from snapfs.usedmap.ntfs_runs import runs_one_by_one
from snapfs.usedmap.result import MapError

FREED = "has files in clusters that its bitmap calls free"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ntfs-proof")


@pytest.fixture(scope="module")
def plain(work: Path) -> Path:
    path = make_ntfs(work / "plain.img", 8 * MIB)
    with mounted(path, "ntfs-3g", work / "mnt") as directory:
        fill(directory)
    return path


@pytest.fixture(scope="module")
def fragmented(work: Path) -> Path:
    return fragment(make_ntfs(work / "fragmented.img", 16 * MIB, "-c", "512"), work / "mnt")


def bitmap_of(path: Path) -> range:
    """Where $Bitmap is; it is in one piece."""
    with opened(path) as (volume, mft):
        stream = data_stream(volume, volume.record(mft, layout.BITMAP_NO))
        ((offset, length),) = volume.pieces(stream, 0, (volume.cluster_count + 7) // 8)
    return range(offset, offset + length)


def change_record(path: Path, number: int, change: Callable[[bytearray], None]) -> None:
    """Change a record where no update sequence is in the way."""
    offset = record_offset(path, number)
    with path.open("r+b") as file:
        file.seek(offset)
        record = bytearray(file.read(RECORD_BYTES))
        change(record)
        file.seek(offset)
        file.write(record)


def set_bytes(offset: int, content: bytes) -> Callable[[bytearray], None]:
    def change(record: bytearray) -> None:
        record[offset : offset + len(content)] = content

    return change


def in_data(offset: int, content: bytes) -> Callable[[bytearray], None]:
    """A change inside the first $DATA of a record."""

    def change(record: bytearray) -> None:
        at = attribute_offset(record, layout.DATA) + offset
        record[at : at + len(content)] = content

    return change


@pytest.mark.parametrize("name", ["plain", "fragmented"])
def test_every_used_cluster_is_claimed(name: str, request: pytest.FixtureRequest) -> None:
    """Each byte of $Bitmap that has a bit set becomes zero: no used cluster escapes the proof."""
    path = request.getfixturevalue(name)
    image = MemoryImage(path.read_bytes())
    used = [at for at in bitmap_of(path)[:-1] if image.content[at]]
    for at in used[:: len(used) // 30]:
        old = image.content[at]
        image.content[at] = 0
        with pytest.raises(MapError, match=r"calls (its own system files )?free"):
            read_free_map(image.source())
        image.content[at] = old


def test_volume_filled_to_the_last_cluster_is_trusted(fragmented: Path, work: Path) -> None:
    copy = copy_image(fragmented, work / "poisoned.img")
    assert poison(copy, read_map(read_free_map, fragmented)) > 100_000
    with mounted(fragmented, "ntfs-3g", work / "mnt") as directory:
        expected = digests(directory)
    with mounted(copy, "ntfs-3g", work / "mnt") as directory:
        assert digests(directory) == expected


def test_the_fragmented_volume_is_what_it_is_for(fragmented: Path) -> None:
    """Its MFT goes on in an extension record, and one of its files too."""
    bases = record_numbers(fragmented, is_extension)
    assert any(number < 24 for number in bases)
    assert any(number >= 24 for number in bases)


@pytest.mark.parametrize("stream", ["streams", "sparse", "packed/text", "many/pieces", "many"])
def test_a_lost_bit_of_any_kind_of_content_is_noticed(fragmented: Path, tmp_path: Path, stream: str) -> None:
    """The last cluster of every attribute outside the record: streams, holes, compressed, directories."""
    copy = copy_image(fragmented, tmp_path / "lost.img")
    lists = mappings(read_record(copy, number_of(copy, stream)))
    assert lists
    bitmap = bitmap_of(copy)
    for mapping in lists:
        start, length = [run for run in runs_one_by_one(mapping, 8 * len(bitmap)) if run[0] is not None][-1]
        assert start is not None
        at = bitmap.start + (start + length - 1) // 8
        old = copy.read_bytes()[at]
        write_at(copy, at, bytes([old & ~(1 << (start + length - 1) % 8)]))
        assert refusal(copy) == FREED
        write_at(copy, at, bytes([old]))


def mappings(record: bytes) -> list[bytes]:
    """The run lists of a record."""
    found = []
    at = struct.unpack_from("<H", record, 20)[0]
    while struct.unpack_from("<I", record, at)[0] != layout.ATTRIBUTES_END:
        length = struct.unpack_from("<I", record, at + 4)[0]
        if record[at + 8]:
            found.append(record[at + struct.unpack_from("<H", record, at + 32)[0] : at + length])
        at += length
    return found


def test_random_damage_of_the_bitmap_never_frees_what_is_used(plain: Path, fragmented: Path) -> None:
    noticed = 0
    for path in (plain, fragmented):
        truth, bitmap, content = read_map(read_free_map, path), [bitmap_of(path)], path.read_bytes()
        for seed in range(100):
            image = MemoryImage(content)
            damage_bitmap(image.content, bitmap, random.Random(seed))
            try:
                assert frees_only(read_free_map(image.source()), truth), seed
            except MapError:
                noticed += 1
    assert noticed > 120


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_bytes(0, b"BAAD"), "is damaged"),
        (set_bytes(0, bytes(RECORD_BYTES)), "is damaged"),
        (set_bytes(510, b"\x77\x77"), "was written only in part"),
        (set_bytes(4, b"\x2e"), "wrong update sequence|only in part"),
        (set_bytes(44, b"\x63"), "says that it is another one"),
        (set_bytes(28, b"\0\2"), "has a wrong size"),
        (set_bytes(24, b"\x40\0"), "broken list of attributes"),
        (set_bytes(20, b"\x39\0"), "is broken"),
        (in_data(4, b"\x17"), "broken list of attributes"),
        (in_data(64, b"\0"), "fewer or more clusters"),
        (in_data(64, b"\x91"), "broken list of clusters"),
        (in_data(65, b"\0"), "broken list of clusters"),
        (in_data(24, b"\x01"), "fewer or more clusters"),
        (in_data(40, b"\0\0\0\0\0"), "of which MFT records are missing"),
        (in_data(32, b"\x02"), "broken list of clusters"),
    ],
)
def test_a_record_that_is_not_understood_proves_nothing(
    plain: Path, tmp_path: Path, change: Callable[[bytearray], None], reason: str
) -> None:
    copy = copy_image(plain, tmp_path / "record.img")
    change_record(copy, number_of(copy, "last.bin"), change)
    with pytest.raises(MapError, match=reason):
        read_map(read_free_map, copy)


def lose_bits_of(path: Path, name: str) -> None:
    """Free the clusters of a file in $Bitmap; it has one attribute outside its record."""
    (mapping,) = mappings(read_record(path, number_of(path, name)))
    place = bitmap_of(path)
    bits = bitarray(endian="little")
    bits.frombytes(path.read_bytes()[place.start : place.stop])
    for start, length in runs_one_by_one(mapping, len(bits)):
        assert start is not None
        bits[start : start + length] = 0
    write_at(path, place.start, bits.tobytes())


def test_a_record_that_only_the_bitmap_of_records_calls_in_use_counts(plain: Path, tmp_path: Path) -> None:
    copy = copy_image(plain, tmp_path / "flag.img")
    lose_bits_of(copy, "last.bin")
    change_record(copy, number_of(copy, "last.bin"), set_bytes(22, b"\0"))
    assert refusal(copy) == FREED


def mft_bitmap_offset(path: Path) -> int:
    record = read_record(path, layout.MFT_NO)
    at = attribute_offset(record, layout.BITMAP)
    mapping = record[at + struct.unpack_from("<H", record, at + 32)[0] :]
    start = next(runs_one_by_one(mapping, 1 << 40))[0]
    assert start is not None
    with opened(path) as (volume, _):
        return start * volume.cluster_bytes


def test_a_record_that_only_itself_calls_in_use_counts(plain: Path, tmp_path: Path) -> None:
    copy = copy_image(plain, tmp_path / "lost.img")
    lose_bits_of(copy, "last.bin")
    number = number_of(copy, "last.bin")
    write_at(copy, mft_bitmap_offset(copy) + number // 8, b"\0")
    assert refusal(copy) == FREED


def test_a_deleted_record_counts_for_nothing(plain: Path, tmp_path: Path) -> None:
    copy = copy_image(plain, tmp_path / "deleted.img")
    lose_bits_of(copy, "last.bin")
    number = number_of(copy, "last.bin")
    at = mft_bitmap_offset(copy) + number // 8
    write_at(copy, at, bytes([copy.read_bytes()[at] & ~(1 << number % 8)]))
    change_record(copy, number, set_bytes(22, b"\0"))
    assert read_map(read_free_map, copy).free.count() > read_map(read_free_map, plain).free.count()


def test_clusters_in_use_that_no_file_claims_are_refused(plain: Path, tmp_path: Path) -> None:
    """What named them has got lost, and may have named others whose bits are lost."""
    copy = copy_image(plain, tmp_path / "leak.img")
    cluster = read_map(read_free_map, plain).free.find(1)
    at = bitmap_of(copy).start + cluster // 8
    write_at(copy, at, bytes([copy.read_bytes()[at] | 1 << cluster % 8]))
    assert refusal(copy) == "has clusters in use that no file claims"


def test_records_in_use_that_were_never_written_are_refused(plain: Path, tmp_path: Path) -> None:
    copy = copy_image(plain, tmp_path / "never.img")
    with opened(copy) as (_, mft):
        write_at(copy, mft_bitmap_offset(copy) + mft.initialised_bytes // RECORD_BYTES // 8 + 1, b"\1")
    assert refusal(copy) == "has MFT records in use that were never written"


def test_files_on_the_same_clusters_are_refused(plain: Path, tmp_path: Path) -> None:
    """The list of one file is written over that of another of the same size."""
    path = copy_image(plain, tmp_path / "twins.img")
    with mounted(path, "ntfs-3g", tmp_path / "mnt") as directory:
        for name in ("twin-one", "twin-two"):
            (directory / name).write_bytes(bytes(20_000))
    (mapping,) = mappings(read_record(path, number_of(path, "twin-one")))
    change_record(path, number_of(path, "twin-two"), in_data(64, mapping))
    assert refusal(path) == "has files that claim the same clusters"


def goes_on(record: bytes) -> bool:
    """Whether the first attribute holds more clusters of a file that is not $MFT itself."""
    at = struct.unpack_from("<H", record, 20)[0]
    type_code, first = struct.unpack_from("<I12xQ", record, at)
    return type_code in (layout.DATA, layout.INDEX_ALLOCATION) and first > 0 and record[32:38] != bytes(6)


def test_a_lost_extension_record_is_missed(fragmented: Path, tmp_path: Path) -> None:
    """Its record is free and the bitmap of records agrees; the first piece still promises what was there."""
    copy = copy_image(fragmented, tmp_path / "extension.img")
    (number, *_) = record_numbers(copy, lambda record: is_extension(record) and goes_on(record))
    at = mft_bitmap_offset(copy) + number // 8
    write_at(copy, at, bytes([copy.read_bytes()[at] & ~(1 << number % 8)]))
    change_record(copy, number, set_bytes(22, b"\0"))
    assert refusal(copy) == "has files of which MFT records are missing"


def test_a_lost_piece_of_the_mft_is_missed(fragmented: Path, tmp_path: Path) -> None:
    copy = copy_image(fragmented, tmp_path / "mft.img")
    number = min(record_numbers(copy, is_extension))
    change_record(copy, number, set_bytes(22, b"\0"))
    assert refusal(copy) == "has an MFT of which a part is missing"


def test_free_clusters_beside_used_ones_stay_free(plain: Path) -> None:
    """The proof takes nothing away: the map is $Bitmap itself."""
    free = read_map(read_free_map, plain).free
    bitmap = bitmap_of(plain)
    content = plain.read_bytes()[bitmap.start : bitmap.stop]
    for value, first, end in intervals(free):
        assert all(content[at // 8] >> at % 8 & 1 != value for at in (first, end - 1))
