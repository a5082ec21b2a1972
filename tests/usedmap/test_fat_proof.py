"""FAT12, FAT16, FAT32: a volume is believed only as far as its FATs and its boot sector bear each other out."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from fat_images import BY_NAME, MIB, fat_offsets, made, write_at
from foreign_images import (
    copy_image,
    read_map,
)

from snapfs.usedmap.fat import read_free_map
from snapfs.usedmap.result import MapError


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fat")


def refusal(path: Path) -> str:
    with pytest.raises(MapError) as caught:
        read_map(read_free_map, path)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "offset"), [("fat12-floppy", 37), ("fat16-clusters-512", 37), ("fat32-clusters-512", 65)]
)
@pytest.mark.parametrize("state", [1, 2, 3])
def test_state_byte_is_believed(name: str, offset: int, state: int, work: Path, tmp_path: Path) -> None:
    copy = copy_image(made(name, work), tmp_path / "state.img")
    write_at(copy, offset, bytes([state]))
    assert refusal(copy) == "is marked as mounted or damaged in its boot sector"


@pytest.mark.parametrize(
    ("name", "offset", "entry", "reason"),
    [
        ("fat16-clusters-512", 2, b"\xff\x7f", "is marked dirty"),
        ("fat16-clusters-512", 2, b"\xff\xbf", "is marked as damaged"),
        ("fat32-clusters-512", 4, b"\xff\xff\xff\x07", "is marked dirty"),
        ("fat32-clusters-512", 4, b"\xff\xff\xff\x0b", "is marked as damaged"),
    ],
)
@pytest.mark.parametrize("fat_no", [0, 1])
def test_flags_in_either_fat_are_believed(
    name: str, offset: int, entry: bytes, reason: str, fat_no: int, work: Path, tmp_path: Path
) -> None:
    copy = copy_image(made(name, work), tmp_path / "flags.img")
    write_at(copy, fat_offsets(copy)[fat_no] + offset, entry)
    assert refusal(copy) == reason


@pytest.mark.parametrize("name", ["fat12-floppy", "fat16-three-fats", "fat32-clusters-512", "fat32-four-fats"])
def test_fats_that_differ_are_refused(name: str, work: Path, tmp_path: Path) -> None:
    copy = copy_image(made(name, work), tmp_path / "differ.img")
    write_at(copy, fat_offsets(copy)[-1] + 40, b"\0")
    assert refusal(copy) == "has FATs that differ from each other"


def entry_bytes(bits: int) -> int:
    return bits // 8


@pytest.mark.parametrize("name", ["fat16-clusters-512", "fat32-clusters-512"])
def test_chain_into_a_free_cluster_is_refused(name: str, work: Path, tmp_path: Path) -> None:
    copy = copy_image(made(name, work), tmp_path / "chain.img")
    free_map = read_map(read_free_map, copy)
    width = entry_bytes(BY_NAME[name].bits)
    # Two free clusters get entries of a chain in both FATs: the first points to the second, which stays free.
    cluster = free_map.free.find(1, 50) + 2
    for fat in fat_offsets(copy):
        write_at(copy, fat + cluster * width, (cluster + 1).to_bytes(width, "little"))
    assert refusal(copy) == "has a chain of clusters that runs into a free one"


@pytest.mark.parametrize("name", ["fat16-clusters-512", "fat32-clusters-512"])
def test_jump_into_a_free_cluster_is_refused(name: str, work: Path, tmp_path: Path) -> None:
    copy = copy_image(made(name, work), tmp_path / "jump.img")
    width = entry_bytes(BY_NAME[name].bits)
    count = len(read_map(read_free_map, copy).free)
    for fat in fat_offsets(copy):
        write_at(copy, fat + (count - 100) * width, (count - 50).to_bytes(width, "little"))
    assert refusal(copy) == "has a chain of clusters that runs into a free one"


def test_chains_that_meet_are_refused(work: Path, tmp_path: Path) -> None:
    copy = copy_image(made("fat32-clusters-512", work), tmp_path / "meet.img")
    free_map = read_map(read_free_map, copy)
    cluster = free_map.free.find(1) + 2
    # A new chain of one cluster ends in the middle of the first long file.
    for fat in fat_offsets(copy):
        write_at(copy, fat + 4 * cluster, (cluster - 3).to_bytes(4, "little"))
    assert refusal(copy) == "has chains of clusters that run into each other"


@pytest.mark.parametrize("target", [1, "behind the end"])
def test_chain_out_of_the_volume_is_refused(target: int | str, work: Path, tmp_path: Path) -> None:
    copy = copy_image(made("fat32-clusters-512", work), tmp_path / "outside.img")
    count = len(read_map(read_free_map, copy).free)
    value = target if isinstance(target, int) else count + 2
    for fat in fat_offsets(copy):
        write_at(copy, fat + 4 * (count + 1), value.to_bytes(4, "little"))
    assert refusal(copy) == "has a chain of clusters that leaves the volume"


def test_fat32_that_keeps_one_fat_only_is_refused(work: Path, tmp_path: Path) -> None:
    copy = copy_image(made("fat32-clusters-512", work), tmp_path / "one.img")
    write_at(copy, 40, b"\x80")
    assert refusal(copy) == "keeps only one of its FATs up to date"


def test_boot_sector_that_differs_from_its_backup_is_refused(work: Path, tmp_path: Path) -> None:
    copy = copy_image(made("fat32-clusters-4k", work), tmp_path / "backup.img")
    write_at(copy, 6 * 512 + 32, b"\x11")
    assert refusal(copy) == "has a boot sector that differs from its backup"


def test_forgotten_second_fat_is_refused(work: Path, tmp_path: Path) -> None:
    copy = copy_image(made("fat16-clusters-32k", work), tmp_path / "forgotten.img")
    write_at(copy, 16, b"\x01")
    assert refusal(copy) == "has more FATs than its boot sector says"


def test_only_fat_that_reaches_into_the_root_directory_is_refused(work: Path, tmp_path: Path) -> None:
    copy = copy_image(made("fat12-one-fat", work), tmp_path / "longer.img")
    with copy.open("rb") as file:
        (sectors,) = struct.unpack_from("<H", file.read(512), 22)
    write_at(copy, 22, struct.pack("<H", sectors + 1))
    assert refusal(copy) == "has a FAT that goes on behind its last cluster"


def test_clusters_moved_by_a_wrong_root_size_are_noticed(work: Path, tmp_path: Path) -> None:
    copy = copy_image(made("fat16-clusters-512", work), tmp_path / "moved.img")
    write_at(copy, 17, struct.pack("<H", 256))
    assert refusal(copy) == "has directories that are not where others say"


def test_volume_larger_than_its_place_is_refused(work: Path, tmp_path: Path) -> None:
    copy = copy_image(made("fat16-clusters-512", work), tmp_path / "cut.img")
    with copy.open("r+b") as file:
        file.truncate(15 * MIB)
    assert refusal(copy) == "is larger than its place"
