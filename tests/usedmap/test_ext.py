"""Maps of ext2, ext3 and ext4: equal to dumpe2fs and partclone, and everything called free may be overwritten."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from bitarray import bitarray
from foreign_images import copy_image, digests, fill, frees_only, poison, read_map, run, used_by_partclone, used_units
from linux_images import (
    MIB,
    check_poisoned,
    frozen,
    fsck,
    make_directory,
    make_filesystem,
    mounted,
    only_region_reason,
    scan_image,
    survive_damage,
    units,
)

from snapfs.usedmap import ext
from snapfs.usedmap.result import FreeMap, MapError

OPTIONS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "default": ("ext4", 64 * MIB, ()),
    "blocks of 4K": ("ext4", 300 * MIB, ("-b", "4096")),
    "blocks of 1K": ("ext4", 64 * MIB, ("-b", "1024")),
    "blocks of 2K": ("ext4", 64 * MIB, ("-b", "2048")),
    "uninitialised groups": ("ext4", 700 * MIB, ("-b", "4096", "-E", "lazy_itable_init=1")),
    "meta_bg": ("ext4", 200 * MIB, ("-b", "1024", "-O", "meta_bg,^resize_inode")),
    "bigalloc": ("ext4", 600 * MIB, ("-b", "4096", "-O", "bigalloc", "-C", "16384")),
    "bigalloc of 1K": ("ext4", 300 * MIB, ("-b", "1024", "-O", "bigalloc", "-C", "8192")),
    "bigalloc, odd size": ("ext4", 200 * MIB + 20480, ("-b", "4096", "-O", "bigalloc", "-C", "65536")),
    "sparse_super2": ("ext4", 300 * MIB, ("-b", "1024", "-O", "sparse_super2")),
    "sparse_super2 alone": ("ext4", 300 * MIB, ("-b", "1024", "-O", "sparse_super2", "-E", "num_backup_sb=0")),
    "every group a super": ("ext4", 100 * MIB, ("-b", "1024", "-O", "^sparse_super,^resize_inode")),
    "no flex_bg": ("ext4", 300 * MIB, ("-b", "1024", "-O", "^flex_bg")),
    "wide flex_bg": ("ext4", 300 * MIB, ("-b", "1024", "-G", "64")),
    "32 bit": ("ext4", 200 * MIB, ("-b", "1024", "-O", "^64bit")),
    "gdt_csum": ("ext4", 300 * MIB, ("-b", "1024", "-O", "uninit_bg,^metadata_csum")),
    "gdt_csum, 32 bit": ("ext4", 300 * MIB, ("-b", "1024", "-O", "uninit_bg,^metadata_csum,^64bit")),
    "no checksums": ("ext4", 100 * MIB, ("-O", "^metadata_csum,^uninit_bg")),
    "csum_seed": ("ext4", 64 * MIB, ("-O", "metadata_csum_seed")),
    "no journal": ("ext4", 64 * MIB, ("-O", "^has_journal")),
    "orphan_file": ("ext4", 64 * MIB, ("-O", "orphan_file")),
    "fast_commit": ("ext4", 64 * MIB, ("-O", "fast_commit")),
    "mmp": ("ext4", 64 * MIB, ("-O", "mmp")),
    "inline data": ("ext4", 64 * MIB, ("-O", "inline_data", "-I", "512")),
    "odd size": ("ext4", 77 * MIB + 3072, ("-b", "1024")),
    "small groups": ("ext4", 200 * MIB, ("-b", "4096", "-g", "8192")),
    "small inodes": ("ext4", 64 * MIB, ("-I", "128")),
    "ext3": ("ext3", 64 * MIB, ()),
    "ext2": ("ext2", 64 * MIB, ()),
    "ext2 of 4K": ("ext2", 64 * MIB, ("-b", "4096")),
    "ext2 revision 0": ("ext2", 32 * MIB, ("-r", "0", "-b", "1024")),
}


def free_by_dumpe2fs(path: Path, free_map: FreeMap) -> bitarray:
    """The free clusters by dumpe2fs; of a range of clusters it names the first block of the last one."""
    header = run("dumpe2fs", "-h", path)
    block_bytes = int(re.search(r"^Block size:\s+(\d+)", header, re.MULTILINE)[1])  # type: ignore[index]
    first_block = int(re.search(r"^First block:\s+(\d+)", header, re.MULTILINE)[1])  # type: ignore[index]
    ratio = free_map.unit_bytes // block_bytes
    ranges = []
    for line in re.findall(r"^  Free blocks: (.*)$", run("dumpe2fs", path), re.MULTILINE):
        for first, last in re.findall(r"(\d+)(?:-(\d+))?", line):
            start, end = (int(first) - first_block) // ratio, (int(last or first) - first_block) // ratio
            ranges.append((start, end - start + 1))
    return units(ranges, len(free_map.free))


@pytest.fixture(scope="module", params=OPTIONS)
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(kind, image, digests of its files) of a filesystem made with one set of options, and unmounted."""
    kind, size, options = OPTIONS[request.param]
    work = tmp_path_factory.mktemp("ext")
    image = make_filesystem(kind, work / "image", size, "-E", "nodiscard", *options)
    with mounted(image, work / "mnt") as directory:
        fill(directory)
        expected = digests(directory)
    yield kind, image, expected
    shutil.rmtree(work)


def test_the_map_is_the_one_of_dumpe2fs(filled) -> None:
    _, image, _ = filled
    free_map = read_map(ext.read_free_map, image)
    assert free_map.free == free_by_dumpe2fs(image, free_map)


def test_everything_called_free_may_be_overwritten(filled, tmp_path: Path) -> None:
    kind, image, expected = filled
    check_poisoned(kind, image, tmp_path, read_map(ext.read_free_map, image), expected)


def test_the_map_is_the_one_of_partclone(tmp_path: Path) -> None:
    image = make_filesystem("ext4", tmp_path / "image", 300 * MIB, "-b", "1024")
    free_map = read_map(ext.read_free_map, image)
    used = used_units(free_map, used_by_partclone("extfs", image, tmp_path))
    assert ~free_map.free == used


@pytest.mark.parametrize("options", [("-b", "65536"), ("-b", "4096", "-O", "quota,project")])
def test_what_the_kernel_may_not_mount_here(options: tuple[str, ...], tmp_path: Path) -> None:
    """Filled by mkfs, read back by debugfs."""
    fill(tmp_path / "content")
    image = make_filesystem("ext4", tmp_path / "image", 256 * MIB, "-F", "-d", str(tmp_path / "content"), *options)
    run("e2fsck", "-fy", image, returncodes=(0, 1))  # mkfs leaves the quota files behind the content
    free_map = read_map(ext.read_free_map, image)
    assert free_map.free == free_by_dumpe2fs(image, free_map)
    assert poison(image, free_map) > 0
    fsck("ext4", image)
    run("debugfs", "-R", f"rdump / {make_directory(tmp_path / 'back')}", image)
    assert digests(tmp_path / "back") == digests(tmp_path / "content")


@pytest.mark.parametrize("new_size", ["40M", "500M"])
@pytest.mark.parametrize("options", [(), ("-O", "^resize_inode"), ("-O", "^64bit")])
def test_a_resized_filesystem(options: tuple[str, ...], new_size: str, tmp_path: Path) -> None:
    image = make_filesystem("ext4", tmp_path / "image", 200 * MIB, *options)
    with mounted(image, tmp_path / "mnt") as directory:
        fill(directory)
        expected = digests(directory)
    run("e2fsck", "-f", "-p", image)
    run("resize2fs", image, new_size)
    with image.open("r+b") as file:
        file.truncate(512 * MIB)
    free_map = read_map(ext.read_free_map, image)
    assert free_map.free == free_by_dumpe2fs(image, free_map)
    check_poisoned("ext4", image, tmp_path, free_map, expected)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_filesystem("ext4", tmp_path / "image", 64 * MIB, "-b", "4096")


@pytest.mark.parametrize("kind", ["ext3", "ext4"])
def test_a_mounted_filesystem_counts_as_used(kind: str, tmp_path: Path) -> None:
    image = make_filesystem(kind, tmp_path / "image", 64 * MIB)
    with mounted(image, tmp_path / "mnt"):
        assert "needs journal recovery" in only_region_reason(image)


def test_a_mounted_filesystem_without_journal_counts_as_used(tmp_path: Path) -> None:
    image = make_filesystem("ext2", tmp_path / "image", 64 * MIB)
    with mounted(image, tmp_path / "mnt"):
        assert "not marked clean" in only_region_reason(image)


def test_errors_make_it_count_as_used(image: Path) -> None:
    run("debugfs", "-w", "-R", "ssv state 3", image)
    assert "having errors" in only_region_reason(image)


def test_an_unknown_feature_makes_it_count_as_used(image: Path) -> None:
    run("debugfs", "-w", "-R", "feature FEATURE_R31", image)
    assert "unknown features" in only_region_reason(image)


def test_a_filesystem_larger_than_its_place_counts_as_used(image: Path) -> None:
    with image.open("r+b") as file:
        file.truncate(60 * MIB)
    assert "has a place of" in only_region_reason(image)


def test_a_flipped_bit_in_a_bitmap_is_noticed(tmp_path: Path) -> None:
    """Without checksums the number of free blocks still tells."""
    image = make_filesystem("ext2", tmp_path / "image", 64 * MIB, "-b", "4096")
    bitmap = int(re.search(r"Block bitmap at (\d+)", run("dumpe2fs", image))[1])  # type: ignore[index]
    block = int(run("debugfs", "-R", "blocks /", image).split()[0])
    with image.open("r+b") as file:
        file.seek(bitmap * 4096 + block // 8)
        (byte,) = file.read(1)
        file.seek(bitmap * 4096 + block // 8)
        file.write(bytes([byte ^ 1 << block % 8]))
    with pytest.raises(MapError, match="number of free blocks"):
        read_map(ext.read_free_map, image)


def test_a_superblock_that_counts_other_free_blocks_makes_it_count_as_used(image: Path) -> None:
    """Descriptors and bitmaps as they were before are right among themselves."""
    run("debugfs", "-w", "-R", "ssv free_blocks_count 4711", image)
    assert "its groups contradict" in only_region_reason(image)


@pytest.mark.parametrize("options", [(), ("-O", "orphan_file"), ("-O", "fast_commit"), ("-O", "bigalloc")])
def test_a_frozen_filesystem_is_as_good_as_an_unmounted_one(options: tuple[str, ...], tmp_path: Path) -> None:
    image = make_filesystem("ext4", tmp_path / "image", 200 * MIB, *options)
    with mounted(image, tmp_path / "mnt") as directory:
        fill(directory)
        expected = digests(directory)
        with frozen(directory):
            copy = copy_image(image, tmp_path / "copy")
    frozen_map = read_map(ext.read_free_map, copy)
    check_poisoned("ext4", copy, tmp_path, frozen_map, expected)
    assert frozen_map.free == read_map(ext.read_free_map, image).free


def test_deleted_files_still_open_at_the_freeze_count_as_used(tmp_path: Path) -> None:
    image = make_filesystem("ext4", tmp_path / "image", 64 * MIB, "-b", "4096")
    with mounted(image, tmp_path / "mnt") as directory, (directory / "gone").open("wb") as file:
        file.write(bytes(range(256)) * 256)
        file.flush()
        (directory / "gone").unlink()
        with frozen(directory):
            copy = copy_image(image, tmp_path / "copy")
    orphaned = read_map(ext.read_free_map, copy)
    assert read_map(ext.read_free_map, image).free.count() - orphaned.free.count() == 16


@pytest.mark.parametrize(("kind", "options"), [("ext2", ()), ("ext4", ("-O", "^has_journal"))])
def test_without_a_journal_only_our_own_freeze_is_trusted(
    kind: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    image = make_filesystem(kind, tmp_path / "image", 64 * MIB, *options)
    with mounted(image, tmp_path / "mnt") as directory:
        fill(directory)
        expected = digests(directory)
        with frozen(directory):
            copy = copy_image(image, tmp_path / "copy")
    assert "not marked clean" in only_region_reason(copy)
    assert "not marked clean" in only_region_reason(copy, frozen_by_us={4096})
    (region,) = scan_image(copy, frozen_by_us={0}).regions
    assert region.state == "trusted"
    run("debugfs", "-w", "-R", "ssv state 1", copy)  # what the check would complain about otherwise
    check_poisoned(kind, copy, tmp_path, read_map(ext.read_free_map, copy), expected)


@pytest.mark.parametrize("name", ["default", "gdt_csum", "meta_bg", "uninitialised groups"])
def test_damage_never_frees_a_used_block(name: str, tmp_path: Path) -> None:
    kind, size, options = OPTIONS[name]
    image = make_filesystem(kind, tmp_path / "image", size, *options)
    truth = read_map(ext.read_free_map, image)
    for free_map in survive_damage(ext.read_free_map, image, range(300)):
        assert frees_only(free_map, truth)
