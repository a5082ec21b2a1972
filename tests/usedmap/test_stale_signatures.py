"""Disks that were formatted as a whole and partitioned later, or the other way about: no used block is freed."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest
from foreign_images import copy_image, make_image, run
from linux_images import MIB, make_filesystem, scan_image

from snapfs.usedmap.result import ImageMap, Region

SECTOR = 512
SIZE = 320 * MIB
START = MIB
PART_SIZE = 8 * MIB

WHOLE = {
    "FAT16": ("mkfs.fat", "-F", "16", "-s", "64"),
    "FAT32 with a boot record": ("mkfs.fat", "-F", "32", "--mbr=yes"),
    "exFAT": ("mkfs.exfat",),
    "NTFS": ("mkfs.ntfs", "-F", "-Q"),
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "XFS": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}


@pytest.fixture(scope="module", params=WHOLE)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk that is one filesystem."""
    disk = make_image(tmp_path_factory.mktemp("whole") / "disk", SIZE)
    run(*WHOLE[request.param], disk)
    return disk


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a partition is to hold."""
    return make_filesystem("ext4", tmp_path_factory.mktemp("part") / "part", PART_SIZE)


def sfdisk(disk: Path, script: str) -> None:
    command = ["sfdisk", "--quiet", "--force", "--no-reread", "--no-tell-kernel", "--wipe", "never", disk]
    subprocess.run(command, input=script, text=True, check=True, capture_output=True, timeout=20)


def read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def mbr(disk: Path) -> None:
    sfdisk(disk, f"start={START // SECTOR}, size={PART_SIZE // SECTOR}\n")


def gpt(disk: Path) -> None:
    sfdisk(disk, f"label: gpt\nstart={START // SECTOR}, size={PART_SIZE // SECTOR}\n")


def gpt_behind_the_old_boot_record(disk: Path) -> None:
    boot_record = read(disk, 0, SECTOR)
    gpt(disk)
    overwrite(disk, 0, boot_record)


def gpt_with_its_second_copy_only(disk: Path) -> None:
    start = read(disk, 0, START)
    gpt(disk)
    overwrite(disk, 0, start)


PARTITIONERS = [mbr, gpt, gpt_behind_the_old_boot_record, gpt_with_its_second_copy_only]


@pytest.mark.parametrize("partition", PARTITIONERS, ids=lambda one: one.__name__)
def test_a_later_partition_keeps_its_blocks(whole: Path, part: Path, partition, tmp_path: Path) -> None:
    assert [region.state for region in scan_image(whole).regions] == ["trusted"]
    disk = copy_image(whole, tmp_path / "disk")
    partition(disk)
    run("dd", f"if={part}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc,sparse")
    inside = scan_image(disk).used[START // 4096 : (START + PART_SIZE) // 4096]
    assert not (scan_image(part).used & ~inside).any()
    disk.unlink()


def only_region(image_map: ImageMap) -> Region:
    (region,) = image_map.regions
    return region


def entry(kind: int, first_sector: int, sectors: int) -> bytes:
    return struct.pack("<B3xB3xII", 0, kind, first_sector, sectors)


@pytest.mark.parametrize("index", range(4))
def test_one_entry_of_a_boot_record_is_enough(index: int, tmp_path: Path) -> None:
    """The others may be what is left of boot code."""
    disk = make_image(tmp_path / "disk", 64 * MIB)
    run("mkfs.fat", disk)
    overwrite(disk, 446, b"B" * 64)
    assert only_region(scan_image(disk)).state == "trusted"
    overwrite(disk, 446 + 16 * index, entry(0x83, 1, 1))
    assert "partitioned disk at once" in only_region(scan_image(disk)).reason


def test_a_filesystem_formatted_over_a_gpt_counts_as_used_until_the_second_header_is_gone(tmp_path: Path) -> None:
    disk = make_image(tmp_path / "disk", 64 * MIB)
    sfdisk(disk, "label: gpt\nstart=2048\n")
    run("mkfs.fat", disk)
    assert "partitioned disk at once" in only_region(scan_image(disk)).reason
    overwrite(disk, 64 * MIB - SECTOR, bytes(SECTOR))
    assert only_region(scan_image(disk)).state == "trusted"


def disk_with_partition(path: Path, content: Path, label: str = "dos", more: str = "") -> Path:
    disk = make_image(path, 64 * MIB)
    size = content.stat().st_size // SECTOR
    sfdisk(disk, f"label: {label}\nstart={START // SECTOR}, size={size}{more}\n")
    run("dd", f"if={content}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc,sparse")
    return disk


def region_of_partition(disk: Path) -> Region:
    (region,) = [one for one in scan_image(disk).regions if one.partition_number == 1]
    return region


@pytest.mark.parametrize("mkfs", ["FAT16", "NTFS"])
@pytest.mark.parametrize("inner", ["dos", "gpt", "gpt at the end"])
def test_a_table_inside_a_partition_counts(mkfs: str, inner: str, tmp_path: Path) -> None:
    """A partition given to a virtual machine, that was a filesystem before."""
    content = make_image(tmp_path / "content", 40 * MIB)
    run(*WHOLE[mkfs][:3], content)
    assert region_of_partition(disk_with_partition(tmp_path / "disk", content)).state == "trusted"
    head = read(content, 0, START)
    sfdisk(content, f"label: {inner[:3]}\nstart=2048\n")
    if inner == "gpt at the end":
        overwrite(content, 0, head)
    disk = disk_with_partition(tmp_path / "disk", content)
    region = region_of_partition(disk)
    assert (region.state, region.free_bytes) == ("all-used", 0)


def test_the_second_header_of_the_disk_is_not_one_of_its_last_partition(tmp_path: Path) -> None:
    """An MBR disk that was a GPT disk before, and whose partition reaches the end of it."""
    disk = make_image(tmp_path / "disk", 64 * MIB)
    sfdisk(disk, "label: gpt\n")
    second_header = read(disk, 64 * MIB - 33 * SECTOR, 33 * SECTOR)
    content = make_filesystem("ext4", tmp_path / "content", 63 * MIB)
    disk = disk_with_partition(tmp_path / "disk", content)
    overwrite(disk, 64 * MIB - 33 * SECTOR, second_header)
    assert region_of_partition(disk).state == "trusted"


@pytest.mark.parametrize("start", [START // SECTOR, START // SECTOR + 8])
def test_a_gpt_beside_a_plain_boot_record_has_to_agree_with_it(start: int, part: Path, tmp_path: Path) -> None:
    disk = make_image(tmp_path / "disk", 64 * MIB)
    sfdisk(disk, f"label: gpt\nstart={start}, size={PART_SIZE // SECTOR}\n")
    gpt = read(disk, SECTOR, 33 * SECTOR)
    disk = disk_with_partition(tmp_path / "disk", part)
    assert region_of_partition(disk).state == "trusted"
    overwrite(disk, SECTOR, gpt)
    agrees = start == START // SECTOR
    region = region_of_partition(disk)
    assert (region.state, "describes its place differently" in region.reason) == (
        "trusted" if agrees else "all-used",
        not agrees,
    )


@pytest.mark.parametrize("size", [64 * MIB, MIB], ids=["disk", "floppy"])
def test_a_fat_over_another_filesystem_whose_superblock_is_still_there_counts_as_used(
    size: int, tmp_path: Path
) -> None:
    """libblkid tolerates a FAT beside anything, and on floppies everything beside everything."""
    image = make_image(tmp_path / "image", size)
    run("mkfs.fat", "-R", "8", image)
    other = make_filesystem("ext2", tmp_path / "other", size)
    assert only_region(scan_image(image)).state == "trusted"
    overwrite(image, 1024, read(other, 1024, 1024))
    assert "more than one filesystem" in only_region(scan_image(image)).reason


TYPES = {
    "dos": ["42", "8e", "fd", "87", "e7", "bf", "a5"],
    "gpt": [
        "AF9B60A0-1431-4F62-BC68-3311714A69AD",
        "5808C8AA-7E8F-42E0-85D2-E1E90434CFB3",
        "E75CAF8F-F680-4CEE-AFA3-B001E56EFC2D",
        "E6D6D379-F507-44C2-A23C-238F2A3DF928",
        "A19D880F-05FC-4D3B-A006-743F0F84911E",
        "6A898CC3-1DD2-11B2-99A6-080020736631",
    ],
}


@pytest.mark.parametrize(("label", "kind"), [(label, kind) for label, kinds in TYPES.items() for kind in kinds])
def test_a_partition_whose_type_makes_it_a_piece_of_something_counts_as_used(
    label: str, kind: str, part: Path, tmp_path: Path
) -> None:
    disk = disk_with_partition(tmp_path / "disk", part, label, f", type={kind}")
    region = region_of_partition(disk)
    assert (region.kind, region.state) == ("ext4", "all-used")
    assert region.reason.startswith("its type says that it is ")
    assert scan_image(disk).used.all()


def test_a_logical_partition_has_a_type_too(part: Path, tmp_path: Path) -> None:
    disk = make_image(tmp_path / "disk", 64 * MIB)
    sfdisk(disk, f"start=1024, type=5\nstart=2048, size={PART_SIZE // SECTOR}, type=42\n")
    run("dd", f"if={part}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc,sparse")
    region = next(one for one in scan_image(disk).regions if one.partition_number == 5)
    assert "Windows dynamic disk" in region.reason


@pytest.mark.parametrize("kind", ["83", "7", "c", "ef"])
def test_a_partition_of_an_ordinary_type_is_looked_into(kind: str, part: Path, tmp_path: Path) -> None:
    disk = disk_with_partition(tmp_path / "disk", part, more=f", type={kind}")
    assert region_of_partition(disk).state == "trusted"


LOST = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "XFS": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
    "NTFS": ("mkfs.ntfs", "-F", "-Q"),
    "FAT16": ("mkfs.fat", "-F", "16"),
    "exFAT": ("mkfs.exfat",),
    "swap": ("mkswap",),
}


@pytest.mark.parametrize("kind", LOST)
@pytest.mark.parametrize("sector", [63, 2048])
def test_a_partition_whose_table_is_lost_is_not_freed(tmp_path: Path, kind: str, sector: int) -> None:
    part = make_image(tmp_path / "part", 312 * MIB)
    run(*LOST[kind], part)
    disk = make_image(tmp_path / "disk", SIZE)
    run(*WHOLE["ext4"], disk)
    overwrite(disk, sector * SECTOR, read(part, 0, 4 * MIB))
    (region,) = scan_image(disk).regions
    assert region.state == "all-used"
    assert region.reason == f"something else begins at {sector * SECTOR} in it, as where a lost partition was"


@pytest.mark.parametrize("options", [("-b", "1024", "-J", "size=1"), ("-b", "4096", "-g", "256"), ("-O", "^flex_bg")])
def test_copies_of_its_own_superblock_make_nothing_of_a_filesystem(tmp_path: Path, options: tuple[str, ...]) -> None:
    disk = make_image(tmp_path / "disk", 8 * MIB)
    run(*WHOLE["ext4"], *options, disk)
    assert [region.state for region in scan_image(disk).regions] == ["trusted"]
