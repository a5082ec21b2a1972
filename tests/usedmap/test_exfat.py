"""exFAT: the map against exfatprogs, partclone, poison and damage."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
from exfat_images import DRIVER, MIB, SECTOR_BYTES, cluster_offset, layout_of, make_exfat, refusal, set_used, write_at
from foreign_images import (
    copy_image,
    damaged_maps,
    digests,
    fill,
    frees_only,
    mounted,
    poison,
    read_map,
    run,
    used_by_partclone,
    used_units,
)

from snapfs.usedmap.exfat import read_free_map
from snapfs.usedmap.exfat_geometry import boot_checksum


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exfat")


@pytest.fixture(scope="module", params=["512", "4K", "32K", "1M"])
def filled(request: pytest.FixtureRequest, work: Path) -> Path:
    """A volume of that cluster size with files in it, some deleted."""
    path = make_exfat(work / f"cluster-{request.param}.img", 96 * MIB, "-c", request.param)
    with mounted(path, DRIVER, work / "mnt") as directory:
        fill(directory)
    return path


@pytest.fixture(scope="module")
def plain(work: Path) -> Path:
    """A small volume with a few files, to be copied and changed."""
    path = make_exfat(work / "plain.img", 8 * MIB, "-c", "4K")
    with mounted(path, DRIVER, work / "mnt") as directory:
        fill(directory)
    return path


def sign_boot_region(path: Path) -> None:
    """Make the checksum right again after a change."""
    with path.open("r+b") as file:
        total = boot_checksum(file.read(11 * SECTOR_BYTES))
        file.write(total.to_bytes(4, "little") * (SECTOR_BYTES // 4))


def test_equals_partclone(filled: Path, work: Path) -> None:
    free_map = read_map(read_free_map, filled)
    assert ~used_units(free_map, used_by_partclone("exfat", filled, work)) == free_map.free


def test_counts_equal_those_of_dump_exfat(filled: Path) -> None:
    free_map = read_map(read_free_map, filled)
    facts = layout_of(filled)
    assert len(free_map.free) == facts["Total Clusters"]
    assert free_map.free.count() == facts["Free Clusters"]
    assert free_map.unit_bytes == facts["Cluster size"]


def test_poison_harms_nothing(filled: Path, work: Path) -> None:
    copy = copy_image(filled, work / "poisoned.img")
    assert poison(copy, read_map(read_free_map, filled)) > 40 * MIB
    run("fsck.exfat", "-n", copy)
    with mounted(filled, DRIVER, work / "mnt") as directory:
        expected = digests(directory)
    with mounted(copy, DRIVER, work / "mnt") as directory:
        assert digests(directory) == expected
    assert len(expected) == 41


def test_heap_that_is_not_aligned_to_blocks(work: Path) -> None:
    path = make_exfat(work / "unaligned.img", 16 * MIB, "-c", "4K", "-b", "512")
    free_map = read_map(read_free_map, path)
    assert free_map.data_offset == layout_of(path)["Cluster Heap Offset"] * SECTOR_BYTES
    assert free_map.free.count() == layout_of(path)["Free Clusters"]


def test_bitmap_in_two_pieces(plain: Path, tmp_path: Path) -> None:
    """The bitmap of a volume with clusters of 512 bytes, its second half moved by hand."""
    path = make_exfat(tmp_path / "pieces.img", 8 * MIB, "-c", "512")
    expected = read_map(read_free_map, path).free
    facts = layout_of(path)
    fat, first = facts["FAT Offset"] * SECTOR_BYTES, facts["Bitmap start cluster"]
    target = expected.find(1, 1000) + 2
    moved = first + 2
    with path.open("r+b") as file:
        file.seek(cluster_offset(path, moved))
        content = file.read(512)
        file.seek(fat + 4 * moved)
        after = file.read(4)
    write_at(path, cluster_offset(path, target), content)
    write_at(path, fat + 4 * (moved - 1), struct.pack("<I", target))
    write_at(path, fat + 4 * target, after)
    bits_per_cluster = 512 * 8
    assert target < bits_per_cluster
    write_at(path, cluster_offset(path, first) + (target - 2) // 8, bytes([1 << (target - 2) % 8]))
    set_used(path, moved, False)
    expected[target - 2], expected[moved - 2] = 0, 1
    assert read_map(read_free_map, path).free == expected


def test_a_mounted_volume_is_dirty(work: Path, tmp_path: Path) -> None:
    path = make_exfat(tmp_path / "mounted.img", 8 * MIB)
    with mounted(path, DRIVER, work / "mnt") as directory:
        (directory / "file").write_bytes(b"x")
        run("sync", "--file-system", directory)
        assert refusal(path) == "is marked dirty"
    assert read_map(read_free_map, path).free.any()


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (1, "has two FATs (TexFAT), which is not supported"),
        (2, "is marked dirty"),
        (4, "is marked as having had media failures"),
    ],
)
def test_flags_are_believed(plain: Path, tmp_path: Path, flags: int, reason: str) -> None:
    copy = copy_image(plain, tmp_path / "flags.img")
    write_at(copy, 106, bytes([flags]))
    assert refusal(copy) == reason


@pytest.mark.parametrize("offset", [72, 80, 88, 92, 96, 109, 200, 5 * SECTOR_BYTES, 11 * SECTOR_BYTES + 9])
def test_changed_boot_region_is_refused(plain: Path, tmp_path: Path, offset: int) -> None:
    copy = copy_image(plain, tmp_path / "boot.img")
    write_at(copy, offset, b"\x07")
    assert refusal(copy) == "has a boot region with a wrong checksum"


@pytest.mark.parametrize(
    ("offset", "field"),
    [(80, 4), (80, 1 << 31), (84, 1), (88, 1), (92, 0), (92, 0xFFFFFFFF), (92, 5000), (96, 0), (96, 5000)],
)
def test_impossible_numbers_are_refused_even_if_signed(plain: Path, tmp_path: Path, offset: int, field: int) -> None:
    copy = copy_image(plain, tmp_path / "signed.img")
    write_at(copy, offset, field.to_bytes(4, "little"))
    sign_boot_region(copy)
    assert refusal(copy)


def test_volume_larger_than_its_place_is_refused(plain: Path, tmp_path: Path) -> None:
    copy = copy_image(plain, tmp_path / "cut.img")
    with copy.open("r+b") as file:
        file.truncate(7 * MIB)
    assert refusal(copy) == "is larger than its place"


@pytest.mark.parametrize("link", [0, 2, 3, 0xFFFFFFF7, 0xFFFFFFFE])
def test_broken_chain_of_the_bitmap_is_refused(plain: Path, tmp_path: Path, link: int) -> None:
    copy = copy_image(plain, tmp_path / "chain.img")
    facts = layout_of(copy)
    write_at(copy, facts["FAT Offset"] * SECTOR_BYTES + 4 * facts["Bitmap start cluster"], struct.pack("<I", link))
    assert "chain" in refusal(copy)


def test_root_directory_in_a_circle_ends(plain: Path, tmp_path: Path) -> None:
    copy = copy_image(plain, tmp_path / "circle.img")
    facts = layout_of(copy)
    root = facts["Root Cluster"]
    write_at(copy, facts["FAT Offset"] * SECTOR_BYTES + 4 * root, struct.pack("<I", root))
    # Without an end mark, and without a bitmap, the search goes round and round.
    write_at(copy, cluster_offset(copy, root), (b"\x05" + bytes(31)) * 128)
    assert refusal(copy).startswith("does not name one allocation bitmap")


def test_bitmap_that_frees_itself_is_refused(plain: Path, tmp_path: Path) -> None:
    copy = copy_image(plain, tmp_path / "bitmap.img")
    write_at(copy, cluster_offset(copy, layout_of(copy)["Bitmap start cluster"]), b"\0")
    assert refusal(copy) == "has an allocation bitmap that calls its own structures free"


def test_damage_never_crashes_nor_frees_what_is_used(plain: Path) -> None:
    truth = read_map(read_free_map, plain)
    facts = layout_of(plain)
    fat = facts["FAT Offset"] * SECTOR_BYTES
    root = cluster_offset(plain, facts["Root Cluster"])
    ranges = [range(128), range(12 * SECTOR_BYTES), range(fat, fat + 64), range(root, root + 96)]
    for seed, free_map in damaged_maps(read_free_map, plain.read_bytes(), ranges, range(400)):
        assert frees_only(free_map, truth), seed


@pytest.mark.alone
def test_one_tebibyte_takes_a_fraction_of_a_second(tmp_path: Path) -> None:
    path = make_exfat(tmp_path / "large.img", 1 << 40, "-c", "32K")
    read_map(read_free_map, path)
    started = time.process_time()
    free_map = read_map(read_free_map, path)
    assert time.process_time() - started < 0.6
    assert free_map.free.count() == layout_of(path)["Free Clusters"]
