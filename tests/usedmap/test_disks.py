"""Whole disks of several filesystems: every block called free is overwritten, then all are checked and compared."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path

import pytest
from disk_images import SECTOR, check, opened, put, run_sfdisk, take
from foreign_images import copy_image, damage, digests, fill, frees_only, make_image, run
from linux_images import (
    MIB,
    make_filesystem,
    poison_image,
    scan_image,
)

from snapfs.usedmap.result import FreeMap, ImageMap
from tests.machine import loop_device


@dataclass
class Part:
    """A filesystem and where on the disk it goes, in sectors."""

    kind: str
    start: int
    size: int
    options: tuple[str, ...] = ()


MBR = [
    Part("ext4", 63, 24 * MIB, ("-b", "1024")),
    Part("ext4", 100_001, 24 * MIB, ("-b", "4096")),
    Part("ext2", 200_003, 20 * MIB, ("-b", "2048")),
    Part("btrfs", 250_007, 130 * MIB),
]
GPT = [
    Part("ext4", 2_049, 64 * MIB, ("-b", "4096", "-O", "bigalloc", "-C", "32768")),
    Part("xfs", 140_002, 320 * MIB),
    Part("ext3", 900_100, 24 * MIB),
]
MBR_SCRIPT = """label: dos
start=63, size=49152, type=83
start=100001, size=49152, type=83
start=200000, size=400000, type=5
start=200003, size=40960, type=83
start=250007, size=266240, type=83
"""
GPT_SCRIPT = """label: gpt
start=2049, size=131072
start=140002, size=655360
start=900100, size=49152, name="third"
"""
FOREIGN = [
    Part("vfat", 35, 33 * MIB, ("-F", "32", "-s", "1")),
    Part("ntfs", 70_001, 24 * MIB, ("-F", "-Q")),
    Part("exfat", 130_003, 24 * MIB),
    Part("ext4", 200_001, 24 * MIB),
]
FOREIGN_SCRIPT = """label: gpt
first-lba: 34
start=35, size=67584
start=70001, size=49152
start=130003, size=49152
start=200001, size=49152
"""
LAYOUTS = {
    "mbr": (MBR, MBR_SCRIPT, 320 * MIB),
    "gpt": (GPT, GPT_SCRIPT, 480 * MIB),
    "foreign": (FOREIGN, FOREIGN_SCRIPT, 160 * MIB),
}


@pytest.fixture(scope="module", params=LAYOUTS)
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(disk, its parts, digests of the files of each)."""
    parts, script, size = LAYOUTS[request.param]
    work = tmp_path_factory.mktemp("disk")
    path = make_image(work / "disk", size)
    run_sfdisk(path, script, work)
    expected = []
    for part in parts:
        filesystem = make_filesystem(part.kind, work / "part", part.size, *part.options)
        with opened(part.kind, filesystem, work / "mnt") as directory:
            fill(directory, seed=part.start)
            expected.append(digests(directory))
        put(filesystem, path, part.start * SECTOR)
        filesystem.unlink()
    yield path, parts, expected
    path.unlink()


@pytest.mark.parametrize("block_bytes", [512, 4096, 65536, MIB])
def test_everything_called_free_may_be_overwritten(disk, block_bytes: int, tmp_path: Path) -> None:
    path, parts, expected = disk
    copy = copy_image(path, tmp_path / "copy")
    image_map = scan_image(path, block_bytes)
    table = run("sfdisk", "--json", path)
    states = {region.offset: region.state for region in image_map.regions if region.partition_number}
    assert states == {part.start * SECTOR: "trusted" for part in parts}
    assert poison_image(copy, image_map) > sum(part.size for part in parts) // 3
    assert json.loads(run("sfdisk", "--json", copy))["partitiontable"]["partitions"] == [
        {**one, "node": one["node"].replace(str(path), str(copy))}
        for one in json.loads(table)["partitiontable"]["partitions"]
    ]
    for part, files in zip(parts, expected, strict=True):
        filesystem = take(copy, part.start * SECTOR, part.size, tmp_path / "part")
        check(part.kind, filesystem)
        with opened(part.kind, filesystem, tmp_path / "mnt", read_only=True) as directory:
            assert digests(directory) == files
        filesystem.unlink()
    copy.unlink()


def test_used_and_free_of_each_partition_are_its_own(disk) -> None:
    path, parts, _ = disk
    image_map = scan_image(path, 512)
    for part in parts:
        (region,) = [one for one in image_map.regions if one.offset == part.start * SECTOR]
        first = region.offset // 512
        free_blocks = image_map.used.count(0, first, first + region.length // 512)
        assert free_blocks * 512 == region.free_bytes
        assert region.free_bytes + region.used_bytes == region.length


@pytest.mark.parametrize("label", ["gpt", "dos"])
def test_disks_with_sectors_of_4096_bytes(label: str, tmp_path: Path) -> None:
    """A file does not tell its sector size: the table does."""
    path = make_image(tmp_path / "disk", 128 * MIB)
    with loop_device(path, "--sector-size", "4096") as device:
        run_sfdisk(device, f"label: {label}\nstart=257, size=8192\nstart=9001, size=4096\n", tmp_path)
    filesystem = make_filesystem("ext4", tmp_path / "part", 16 * MIB, "-b", "4096")
    put(filesystem, path, 9001 * 4096)
    for sector_bytes in (None, 4096):
        regions = scan_image(path, sector_bytes=sector_bytes).regions
        found = [(r.kind, r.offset, r.length, r.state) for r in regions if r.partition_number]
        assert found == [
            ("unknown", 257 * 4096, 8192 * 4096, "all-used"),
            ("ext4", 9001 * 4096, 16 * MIB, "trusted"),
        ]


def test_a_filesystem_that_ends_before_its_partition_leaves_the_rest_used(tmp_path: Path) -> None:
    path = make_image(tmp_path / "disk", 64 * MIB)
    run_sfdisk(path, "label: gpt\nstart=2048, size=100000\n", tmp_path)
    put(make_filesystem("ext4", tmp_path / "part", 16 * MIB), path, MIB)
    image_map = scan_image(path)
    assert image_map.used[17 * MIB // 4096 :].all()
    assert not image_map.used[: 17 * MIB // 4096].all()


def test_a_frozen_partition_is_known_by_its_offset(tmp_path: Path) -> None:
    path = make_image(tmp_path / "disk", 64 * MIB)
    run_sfdisk(path, "label: gpt\nstart=2048, size=40000\nstart=50000, size=40000\n", tmp_path)
    filesystem = make_filesystem("ext2", tmp_path / "part", 16 * MIB)
    run("debugfs", "-w", "-R", "ssv state 0", filesystem)
    put(filesystem, path, MIB)
    put(filesystem, path, 50_000 * SECTOR)
    regions = scan_image(path, frozen_by_us={MIB}).regions
    assert [r.state for r in regions if r.partition_number] == ["trusted", "all-used"]


def test_damage_of_a_gpt_never_frees_a_used_block(tmp_path: Path) -> None:
    path = make_image(tmp_path / "disk", 64 * MIB)
    run_sfdisk(path, "label: gpt\nstart=2049, size=40000\nstart=50000, size=40000\n", tmp_path)
    filesystem = make_filesystem("ext4", tmp_path / "part", 16 * MIB)
    put(filesystem, path, 2049 * SECTOR)
    put(filesystem, path, 50_000 * SECTOR)
    truth = as_free_map(scan_image(path))
    table_bytes = 34 * SECTOR
    with path.open("r+b") as file:
        tables = {offset: read_at(file, offset, table_bytes) for offset in (0, 64 * MIB - table_bytes)}
        for seed in range(200):
            dice = random.Random(seed)
            for offset, table in tables.items():
                broken = bytearray(table)
                # Mostly within the boot record, the header and the first entries.
                damage(broken, [range(440, 512), range(512, 604), range(1024, 1280), range(table_bytes)], dice)
                write_at(file, offset, broken if dice.random() < 0.7 else table)
            assert frees_only(as_free_map(scan_image(path)), truth)


def as_free_map(image_map: ImageMap) -> FreeMap:
    return FreeMap(image_map.block_bytes, 0, ~image_map.used)


def read_at(file: BufferedRandom, offset: int, length: int) -> bytes:
    file.seek(offset)
    return file.read(length)


def write_at(file: BufferedRandom, offset: int, data: bytes) -> None:
    file.seek(offset)
    file.write(data)
    file.flush()
