"""Partition tables: the same partitions as partx finds, and nothing trusted that does not make sense."""

from __future__ import annotations

import re
import struct
import zlib
from pathlib import Path

import pytest
from foreign_images import make_image, run
from linux_images import MIB, scan_image

from snapfs.usedmap.result import ImageMap, Region

SECTOR = 512
SIZE = 64 * MIB
SECTORS = SIZE // SECTOR
EXTENDED, LINUX = 0x05, 0x83

Entry = tuple[int, int, int]  # type, first sector, sectors


def boot_record(*entries: Entry) -> bytes:
    packed = b"".join(struct.pack("<B3xB3xII", 0, *entry) for entry in entries)
    return bytes(446) + packed.ljust(64, b"\0") + b"\x55\xaa"


def disk_with_records(path: Path, records: dict[int, bytes]) -> Path:
    make_image(path, SIZE)
    with path.open("r+b") as file:
        for sector, record in records.items():
            file.seek(sector * SECTOR)
            file.write(record)
    return path


def partition_regions(image_map: ImageMap) -> list[Region]:
    return [region for region in image_map.regions if region.partition_number is not None]


def by_partx(path: Path) -> list[tuple[int, int, int]]:
    """(number, offset, length); partx lists the container of the logical partitions as well."""
    text = run("partx", "--show", "--noheadings", "-o", "NR,START,SECTORS,TYPE", path)
    rows = [line.split() for line in text.splitlines()]
    return sorted((int(n), int(s) * SECTOR, int(c) * SECTOR) for n, s, c, kind in rows if kind != "0x5")


def partitions_of(path: Path) -> list[tuple[int, int, int]]:
    found = partition_regions(scan_image(path))
    return sorted((region.partition_number or 0, region.offset, region.length) for region in found)


def check_regions_cover_the_image(image_map: ImageMap) -> None:
    covered = 0
    for region in image_map.regions:
        assert region.offset == covered
        covered += region.length
    assert covered == image_map.size_bytes


LAYOUTS = {
    "dos": """
start=63, size=2049, type=83
start=2113, size=4096, type=83
start=8192, size=60000, type=5
start=9001, size=9001, type=83
start=20003, size=3000, type=82
""",
    "gpt": """
start=2048, size=2049
start=4113, size=4096
start=10001, size=6000
start=17000, size=1
""",
}


@pytest.mark.parametrize("label", LAYOUTS)
def test_the_partitions_are_those_of_partx(label: str, tmp_path: Path) -> None:
    disk = make_image(tmp_path / "disk", SIZE)
    script = f"label: {label}\n{LAYOUTS[label]}"
    write_table(disk, script, tmp_path)
    assert partitions_of(disk) == by_partx(disk)
    assert len(partitions_of(disk)) >= 4
    check_regions_cover_the_image(scan_image(disk))


def write_table(disk: Path, script: str, work: Path) -> None:
    (work / "script").write_text(script)
    run("sh", "-c", f"sfdisk --quiet --no-reread --no-tell-kernel --wipe never {disk} < {work / 'script'}")


def test_gpt_names_are_told(tmp_path: Path) -> None:
    disk = make_image(tmp_path / "disk", SIZE)
    run("sgdisk", "-n", "3:2048:+8M", "-c", "3:données", disk)
    (region,) = partition_regions(scan_image(disk))
    assert (region.partition_number, region.partition_name) == (3, "données")


@pytest.fixture
def gpt_disk(tmp_path: Path) -> Path:
    disk = make_image(tmp_path / "disk", SIZE)
    run("sgdisk", "-n", "1:2048:+8M", "-n", "2:0:+8M", disk)
    return disk


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("offset", [SECTOR, SECTOR + 40, 2 * SECTOR + 33], ids=["magic", "header", "entries"])
def test_the_second_copy_of_a_gpt_is_used_when_the_first_is_damaged(offset: int, gpt_disk: Path) -> None:
    before = partitions_of(gpt_disk)
    overwrite(gpt_disk, offset, b"\xff\xfe\xfd\xfc")
    assert partitions_of(gpt_disk) == before


def whole_reason(path: Path) -> str:
    image_map = scan_image(path)
    assert image_map.used.all()
    (region,) = image_map.regions
    return region.reason


def test_a_gpt_damaged_in_both_copies_makes_the_image_count_as_used(gpt_disk: Path) -> None:
    overwrite(gpt_disk, SECTOR, b"\xff" * 16)
    overwrite(gpt_disk, SIZE - SECTOR, b"\xff" * 16)
    assert whole_reason(gpt_disk)


def test_copies_of_a_gpt_that_differ_make_the_image_count_as_used(gpt_disk: Path, tmp_path: Path) -> None:
    other = make_image(tmp_path / "other", SIZE)
    run("sgdisk", "-n", "1:2048:+9M", "-U", "R", other)
    with other.open("rb") as file:
        file.seek(SIZE - 33 * SECTOR)
        overwrite(gpt_disk, SIZE - 33 * SECTOR, file.read())
    assert "copies that differ" in whole_reason(gpt_disk)


def test_a_gpt_whose_image_has_grown_is_read(gpt_disk: Path) -> None:
    before = partitions_of(gpt_disk)
    with gpt_disk.open("r+b") as file:
        file.truncate(2 * SIZE)
    assert partitions_of(gpt_disk) == before
    check_regions_cover_the_image(scan_image(gpt_disk))


def test_a_hybrid_record_that_contradicts_the_gpt_is_noticed(gpt_disk: Path) -> None:
    record = boot_record((0xEE, 1, 2047), (LINUX, 2048, 4096))
    overwrite(gpt_disk, 446, record[446:])
    reasons = {region.partition_number: region.reason for region in partition_regions(scan_image(gpt_disk))}
    assert "hybrid" in reasons[1]
    assert "hybrid" not in reasons[2]


def test_overlapping_partitions_count_as_used(tmp_path: Path) -> None:
    records = {0: boot_record((LINUX, 100, 1000), (LINUX, 1099, 1000), (LINUX, 5000, 10))}
    regions = partition_regions(scan_image(disk_with_records(tmp_path / "disk", records)))
    assert ["overlaps" in region.reason for region in regions] == [True, True, False]


def test_a_partition_inside_another_counts_as_used(tmp_path: Path) -> None:
    records = {0: boot_record((LINUX, 100, 9000), (LINUX, 200, 10), (LINUX, 300, 10))}
    regions = partition_regions(scan_image(disk_with_records(tmp_path / "disk", records)))
    assert all("overlaps" in region.reason for region in regions)


def test_a_partition_beyond_the_end_counts_as_used(tmp_path: Path) -> None:
    records = {0: boot_record((LINUX, 100, 1000), (LINUX, 2000, SECTORS))}
    image_map = scan_image(disk_with_records(tmp_path / "disk", records))
    first, second = partition_regions(image_map)
    assert "beyond the end" in second.reason
    assert "beyond the end" not in first.reason
    check_regions_cover_the_image(image_map)


CHAIN = {
    "to itself": {1000: boot_record((LINUX, 1, 10), (EXTENDED, 0, 100))},
    "backwards": {
        1000: boot_record((LINUX, 1, 10), (EXTENDED, 100, 100)),
        1100: boot_record((LINUX, 1, 10), (EXTENDED, 50, 100)),
        1050: boot_record((LINUX, 1, 10), (EXTENDED, 100, 100)),
    },
    "outside": {1000: boot_record((LINUX, 1, 10), (EXTENDED, 90_000, 100))},
    "without a signature": {1000: bytes(512)},
    "of a partition too long": {1000: boot_record((LINUX, 1, 60_000))},
    "of two partitions in one record": {1000: boot_record((LINUX, 1, 10), (LINUX, 20, 10))},
}


@pytest.mark.parametrize("name", CHAIN)
def test_a_broken_chain_makes_the_extended_partition_count_as_used(name: str, tmp_path: Path) -> None:
    records = {0: boot_record((LINUX, 100, 100), (EXTENDED, 1000, 50_000)), **CHAIN[name]}
    image_map = scan_image(disk_with_records(tmp_path / "disk", records))
    assert "chain of logical partitions is broken" in partition_regions(image_map)[1].reason
    assert image_map.used.all()


def test_a_chain_of_hundreds_ends(tmp_path: Path) -> None:
    records = {0: boot_record((EXTENDED, 1000, 50_000))}
    for number in range(300):
        records[1000 + 4 * number] = boot_record((LINUX, 1, 1), (EXTENDED, 4 * number + 4, 4))
    (region,) = partition_regions(scan_image(disk_with_records(tmp_path / "disk", records)))
    assert "more than 256 links" in region.reason


def test_two_extended_partitions_make_the_image_count_as_used(tmp_path: Path) -> None:
    records = {0: boot_record((EXTENDED, 1000, 1000), (EXTENDED, 5000, 1000))}
    records |= {1000: boot_record((LINUX, 1, 10)), 5000: boot_record((LINUX, 1, 10))}
    assert "more than one extended" in whole_reason(disk_with_records(tmp_path / "disk", records))


def test_a_table_that_is_not_looked_into_makes_the_image_count_as_used(tmp_path: Path) -> None:
    disk = make_image(tmp_path / "disk", SIZE)
    write_table(disk, "label: sun\nsize=10000\n", tmp_path)
    assert "kind sun" in whole_reason(disk)


def test_an_empty_image_counts_as_used(tmp_path: Path) -> None:
    assert "nothing that snapfs knows" in whole_reason(make_image(tmp_path / "disk", SIZE))


@pytest.mark.parametrize("size", [0, 1, 511, 4097])
def test_tiny_images_count_as_used(size: int, tmp_path: Path) -> None:
    image_map = scan_image(make_image(tmp_path / "disk", size))
    assert image_map.used.all()
    assert len(image_map.used) == -(-size // 4096)


def test_gpt_entries_are_read_only_up_to_a_bound(gpt_disk: Path) -> None:
    """A header that claims four thousand million entries is not believed, in whatever time."""
    for offset in (SECTOR, SIZE - SECTOR):
        overwrite(gpt_disk, offset + 80, struct.pack("<I", 0xFFFFFFFF))
        fix_header_checksum(gpt_disk, offset)
    assert whole_reason(gpt_disk)


def fix_header_checksum(path: Path, offset: int) -> None:
    with path.open("rb") as file:
        file.seek(offset)
        header = bytearray(file.read(92))
    header[16:20] = bytes(4)
    overwrite(path, offset + 16, struct.pack("<I", zlib.crc32(header)))


def test_reasons_are_clauses(gpt_disk: Path) -> None:
    for region in scan_image(gpt_disk).regions:
        assert re.fullmatch(r"[a-z].*[^.]", region.reason)
