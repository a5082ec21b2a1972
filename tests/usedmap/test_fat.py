"""FAT12, FAT16, FAT32: the map against mtools, partclone, fsck.fat, poison and damage."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path

import numpy as np
import pytest
from bitarray import bitarray
from fat_images import (
    BY_NAME,
    CASES,
    KIB,
    MIB,
    UNCHECKED,
    Case,
    fat_offsets,
    fill_fat,
    made,
    make_fat,
    unpack,
    write_at,
)
from foreign_images import (
    copy_image,
    damaged_maps,
    digests,
    frees_only,
    poison,
    read_map,
    run,
    used_by_partclone,
    used_units,
)

from snapfs.usedmap.fat import read_free_map
from snapfs.usedmap.result import FreeMap

# fsck.fat knows no more than two FATs; of these volumes mtools is the only judge.
WITHOUT_FSCK = ("fat16-three-fats", "fat32-four-fats")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fat")


@pytest.fixture(scope="module", params=[case.name for case in CASES])
def filled(request: pytest.FixtureRequest, work: Path) -> Path:
    path = make_fat(work / f"{request.param}.img", BY_NAME[request.param])
    fill_fat(path, work)
    return path


def used_by_mtools(path: Path, free_map: FreeMap) -> bitarray:
    """The clusters of every file and directory, as a bitarray like `free`."""
    files = unpack(path, path.parent / f"{path.name}.files")
    names = [f"::/{name.relative_to(files)}" for name in files.rglob("*")]
    listing = run("mshowfat", "-i", path, *names, env=UNCHECKED)
    used = bitarray(len(free_map.free), endian="little")
    used.setall(0)
    if BY_NAME[path.stem].bits == 32:
        used[0] = 1  # the root directory
    for piece in re.findall(r"<([\d-]+)>", listing):
        first, _, last = piece.partition("-")
        used[int(first) - 2 : int(last or first) - 1] = 1
    return used


def fsck(path: Path) -> str:
    """What fsck.fat says, which may complain of nothing but a boot sector that was made without a backup."""
    return run("fsck.fat", "-n", "-v", path, returncodes=[1 if "no-backup" in path.name else 0])


def test_equals_the_clusters_that_mtools_finds(filled: Path) -> None:
    free_map = read_map(read_free_map, filled)
    assert ~free_map.free == used_by_mtools(filled, free_map)


def test_counts_equal_those_of_fsck(filled: Path) -> None:
    if filled.stem in WITHOUT_FSCK:
        return
    free_map = read_map(read_free_map, filled)
    used = len(free_map.free) - free_map.free.count()
    assert f" {used}/{len(free_map.free)} clusters" in fsck(filled)


@pytest.mark.parametrize("name", ["fat16-clusters-512", "fat32-clusters-512"])
def test_equals_partclone(name: str, work: Path) -> None:
    path = made(name, work)
    free_map = read_map(read_free_map, path)
    assert ~used_units(free_map, used_by_partclone("fat", path, work)) == free_map.free


def test_fat32_with_as_few_clusters_as_fat16(work: Path) -> None:
    path = make_fat(work / "few.img", Case("", 20 * MIB, "-F 32 -s 1", 32))
    free_map = read_map(read_free_map, path)
    assert f" 1/{len(free_map.free)} clusters" in fsck(path)
    assert ~used_units(free_map, used_by_partclone("fat", path, work)) == free_map.free


def test_poison_harms_nothing(filled: Path, tmp_path: Path) -> None:
    copy = copy_image(filled, tmp_path / f"poisoned-{filled.name}")
    assert poison(copy, read_map(read_free_map, filled)) > 500 * KIB
    if filled.stem not in WITHOUT_FSCK:
        assert fsck(copy).splitlines()[-1].split(": ")[1] == fsck(filled).splitlines()[-1].split(": ")[1]
    expected = digests(unpack(filled, filled.parent / f"{filled.name}.files"))
    assert digests(unpack(copy, tmp_path / "files")) == expected
    assert len(expected) >= 8


def test_bad_clusters_are_used(work: Path, tmp_path: Path) -> None:
    copy = copy_image(made("fat32-clusters-512", work), tmp_path / "bad.img")
    free_map = read_map(read_free_map, copy)
    cluster = free_map.free.find(1) + 2
    for fat in fat_offsets(copy):
        write_at(copy, fat + 4 * cluster, b"\xf7\xff\xff\x0f")
    expected = free_map.free.copy()
    expected[cluster - 2] = 0
    assert read_map(read_free_map, copy).free == expected


def test_upper_four_bits_of_fat32_entries_do_not_count(work: Path, tmp_path: Path) -> None:
    copy = copy_image(made("fat32-clusters-512", work), tmp_path / "upper.img")
    free_map = read_map(read_free_map, copy)
    cluster = free_map.free.find(1) + 2
    for fat in fat_offsets(copy):
        write_at(copy, fat + 4 * cluster, b"\0\0\0\xf0")
    assert read_map(read_free_map, copy).free == free_map.free


@pytest.mark.parametrize("name", ["fat12-floppy", "fat16-clusters-512", "fat32-clusters-512"])
def test_damage_never_crashes_nor_frees_what_is_used(name: str, work: Path) -> None:
    path = made(name, work)
    truth = read_map(read_free_map, path)
    first, second = fat_offsets(path)
    root = 2 * second - first
    ranges = [range(11, 90), range(first, first + 600), range(second, second + 600), range(root, root + 512)]
    for seed, free_map in damaged_maps(read_free_map, path.read_bytes(), ranges, range(300)):
        assert frees_only(free_map, truth), seed


def test_every_fragmentation_gives_the_plain_answer(tmp_path: Path) -> None:
    """Random chains over the borders of the pieces, against one loop over the entries."""
    path = make_fat(tmp_path / "large.img", Case("", 2 << 30, "-F 32 -s 4", 32))
    offsets = fat_offsets(path)
    count = len(read_map(read_free_map, path).free)
    dice = random.Random(7)
    entries = np.zeros(count + 2, dtype="<u4")
    entries[:3] = (0x0FFFFFF8, 0x0FFFFFFF, 0x0FFFFFFF)
    order = dice.sample(range(3, count + 2), 5000)
    rows = [list(range(start, min(start + dice.randrange(1, 200), count + 2))) for start in order]
    chain = list(dict.fromkeys(cluster for row in rows for cluster in row))
    for cluster, following in zip(chain, [*chain[1:], 0x0FFFFFFF], strict=True):
        entries[cluster] = following
    for offset in offsets:
        write_at(path, offset, entries.tobytes())
    free = read_map(read_free_map, path).free
    assert count > 3 * (1 << 18)
    assert free == bitarray([int(entry) == 0 for entry in entries[2:]], endian="little")


@pytest.mark.alone
def test_one_tebibyte_takes_a_fraction_of_a_second(tmp_path: Path) -> None:
    path = make_fat(tmp_path / "large.img", Case("", 1 << 40, "-F 32 -s 64", 32))
    read_map(read_free_map, path)
    started = time.process_time()
    free_map = read_map(read_free_map, path)
    assert time.process_time() - started < 1.0
    assert len(free_map.free) - free_map.free.count() == 1
