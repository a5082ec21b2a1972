"""Maps of btrfs: equal to the extents of dump-tree, and everything called free may be overwritten."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from bitarray import bitarray
from foreign_images import copy_image, digests, fill, frees_only, read_map, run
from linux_images import (
    MIB,
    check_poisoned,
    filled_filesystem,
    frozen,
    make_filesystem,
    mounted,
    only_region_reason,
    scan_image,
    survive_damage,
    units,
)

from snapfs.usedmap import btrfs
from snapfs.usedmap.result import FreeMap

SIZE = 300 * MIB

OPTIONS: dict[str, tuple[str, ...]] = {
    "default": (),
    "single": ("-m", "single", "-d", "single"),
    "dup of everything": ("-m", "dup", "-d", "dup"),
    "mixed": ("--mixed", "-m", "dup", "-d", "dup"),
    "small nodes": ("-n", "4096", "-m", "dup"),
    "large nodes": (
        "-n",
        "65536",
    ),
    "free space cache": ("-R", "^free-space-tree"),
    "xxhash": ("--checksum", "xxhash"),
    "sha256": ("--checksum", "sha256"),
    "blake2": ("--checksum", "blake2"),
    "old features": ("-O", "^no-holes,^extref,^skinny-metadata"),
}


def free_by_dump_tree(path: Path, free_map: FreeMap) -> bitarray:
    """Free sectors by the extents and chunks of dump-tree, less the places that btrfs reserves."""
    unit = free_map.unit_bytes
    used = units([(0, MIB // unit), (64 * MIB // unit, 65536 // unit)], len(free_map.free))
    chunks = chunks_by_dump_tree(path)
    node_bytes = int(re.search(r"^nodesize\s+(\d+)", run(*DUMP, "dump-super", path), re.MULTILINE)[1])  # type: ignore[index]
    text = run(*DUMP, "dump-tree", "-t", "extent", path)
    # Of items alone: a block of a tree has its first key noted as well, as it was when the block was made.
    for start, kind, size in re.findall(r"\titem \d+ key \((\d+) (EXTENT_ITEM|METADATA_ITEM) (\d+)\)", text):
        length = int(size) if kind == "EXTENT_ITEM" else node_bytes
        for place in places(chunks, int(start)):
            used[place // unit : (place + length) // unit] = 1
    return ~used


DUMP = ("btrfs", "inspect-internal")


def chunks_by_dump_tree(path: Path) -> list[tuple[int, int, list[int]]]:
    text = run(*DUMP, "dump-tree", "-t", "chunk", path)
    chunks = []
    for item in re.split(r"\titem \d+ ", text)[1:]:
        key = re.match(r"key \(FIRST_CHUNK_TREE CHUNK_ITEM (\d+)\)", item)
        length = re.search(r"length (\d+)", item)
        if key and length:
            offsets = [int(offset) for offset in re.findall(r"stripe \d+ devid \d+ offset (\d+)", item)]
            chunks.append((int(key[1]), int(length[1]), offsets))
    return chunks


def places(chunks: list[tuple[int, int, list[int]]], address: int) -> list[int]:
    for start, length, offsets in chunks:
        if start <= address < start + length:
            return [offset + address - start for offset in offsets]
    raise AssertionError(address)


@pytest.fixture(scope="module", params=OPTIONS)
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(image, digests of its files) of a filesystem made with one set of options, and unmounted."""
    work = tmp_path_factory.mktemp("btrfs")
    with filled_filesystem("btrfs", work, SIZE, *OPTIONS[request.param], file_bytes=5000) as made:
        yield made


def test_the_map_is_the_one_of_dump_tree(filled) -> None:
    image, _ = filled
    free_map = read_map(btrfs.read_free_map, image)
    assert free_map.free == free_by_dump_tree(image, free_map)


def test_everything_called_free_may_be_overwritten(filled, tmp_path: Path) -> None:
    image, expected = filled
    check_poisoned("btrfs", image, tmp_path, read_map(btrfs.read_free_map, image), expected)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_filesystem("btrfs", tmp_path / "image", SIZE)


def superblock_of(image: Path) -> bytes:
    with image.open("rb") as file:
        file.seek(64 << 10)
        return file.read(4096)


def test_mounted_and_synced_it_is_consistent(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mnt", "rw,noatime,commit=300") as directory:
        fill(directory)
        os.sync()
        expected = digests(directory)
        # The kernel may commit at any time, here too: a copy that it came in between is none of one instant.
        before = None
        while before != superblock_of(image):
            before = superblock_of(image)
            copy = copy_image(image, tmp_path / "copy")
    check_poisoned("btrfs", copy, tmp_path, read_map(btrfs.read_free_map, copy), expected)


def test_a_log_tree_makes_it_count_as_used(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mnt", "rw,commit=300") as directory, (directory / "file").open("wb") as file:
        copy = tmp_path / "copy"
        # A sync of the whole machine, by whomever, ends the log tree.
        for _ in range(20):
            file.write(b"content" * 10_000)
            file.flush()
            os.fsync(file.fileno())
            copy_image(image, copy)
            if scan_image(copy).regions[0].state == "all-used":
                break
    assert "log tree" in only_region_reason(copy)


def test_a_frozen_filesystem_has_no_log_tree(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mnt") as directory:
        fill(directory)
        with (directory / "file").open("wb") as file:
            file.write(b"content" * 10_000)
            file.flush()
            os.fsync(file.fileno())
        expected = digests(directory)
        with frozen(directory):
            copy = copy_image(image, tmp_path / "copy")
    check_poisoned("btrfs", copy, tmp_path, read_map(btrfs.read_free_map, copy), expected)


def test_snapshots_and_subvolumes_keep_their_files(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mnt") as directory:
        run("btrfs", "subvolume", "create", directory / "volume")
        fill(directory / "volume")
        run("btrfs", "subvolume", "snapshot", directory / "volume", directory / "kept")
        for path in (directory / "volume").rglob("*.bin"):
            path.unlink()
        expected = digests(directory)
    check_poisoned("btrfs", image, tmp_path, read_map(btrfs.read_free_map, image), expected)


def test_shrunk_and_balanced(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mnt") as directory:
        fill(directory)
        run(
            "btrfs", "balance", "start", "--force", "-dconvert=dup", "-mconvert=single", "-sconvert=single", directory
        )
        run("btrfs", "filesystem", "resize", "256M", directory)
        expected = digests(directory)
    free_map = read_map(btrfs.read_free_map, image)
    assert len(free_map.free) == 256 * MIB // 4096
    assert free_map.free == free_by_dump_tree(image, free_map)
    check_poisoned("btrfs", image, tmp_path, free_map, expected)


@pytest.mark.parametrize("profile", ["raid1", "raid0", "single"])
def test_several_devices_count_as_used(profile: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        with path.open("wb") as file:
            file.truncate(SIZE)
    run("mkfs.btrfs", "-q", "-d", profile, "-m", "raid1", first, second)
    assert "several devices" in only_region_reason(first)


def test_a_superblock_older_than_its_copy_counts_as_used(image: Path, tmp_path: Path) -> None:
    """The last write of the first one was lost; what it refers to may be overwritten any time."""
    older = superblock_of(image)
    with mounted(image, tmp_path / "mnt") as directory:
        fill(directory)
    with image.open("r+b") as file:
        file.seek(64 << 10)
        file.write(older)
    assert "later than the first" in only_region_reason(image)


def test_a_seeding_filesystem_counts_as_used(image: Path) -> None:
    run("btrfstune", "-S", "1", image)
    assert "special state" in only_region_reason(image)


def test_a_changed_uuid_is_followed(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mnt") as directory:
        fill(directory)
        expected = digests(directory)
    run("btrfstune", "-m", image)
    check_poisoned("btrfs", image, tmp_path, read_map(btrfs.read_free_map, image), expected)


@pytest.mark.parametrize("name", ["default", "small nodes", "sha256"])
def test_damage_never_frees_a_used_block(name: str, tmp_path: Path) -> None:
    image = make_filesystem("btrfs", tmp_path / "image", SIZE, *OPTIONS[name])
    with mounted(image, tmp_path / "mnt") as directory:
        fill(directory)
    truth = read_map(btrfs.read_free_map, image)
    for free_map in survive_damage(btrfs.read_free_map, image, range(300)):
        assert frees_only(free_map, truth)
