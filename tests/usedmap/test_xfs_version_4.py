"""XFS without checksums (version 4). No new kernel mounts it: mkfs fills it, and its other tools are the judges."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from foreign_images import copy_image, frees_only, poison, read_map, run
from linux_images import MIB, free_by_xfs_db, fsck, make_xfs_version_4, only_region_reason, survive_damage

from snapfs.usedmap import xfs

SIZE = 320 * MIB

OPTIONS: dict[str, tuple[str, ...]] = {
    "default": (),
    "sectors of 4K": ("-s", "size=4096"),
    "old": ("-b", "size=1024", "-l", "version=1,lazy-count=0", "-i", "attr=1,projid32bit=0", "-n", "ftype=0"),
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_xfs_version_4(tmp_path_factory.mktemp("old"), SIZE)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_map_is_the_one_of_xfs_db_and_poison_harms_nothing(name: str, tmp_path: Path) -> None:
    image = make_xfs_version_4(tmp_path, SIZE, *OPTIONS[name])
    free_map = read_map(xfs.read_free_map, image)
    assert free_map.free == free_by_xfs_db(image, free_map)
    assert poison(image, free_map) > 200 * MIB
    fsck("xfs", image)
    assert read_map(xfs.read_free_map, image).free == free_map.free


@pytest.mark.parametrize(
    ("writes", "reason"),
    [
        (("agf 0", "addr bnoroot", "write recs[1].startblock 9"), "out of order|two lists"),
        (("agf 0", "addr cntroot", "write recs[3].blockcount 7777"), "two lists"),
        (("sb 1", "write logblocks 99"), "differs from its copy"),
        (("sb 0", "write features2 0x8000"), "unknown features"),
        (("agf 1", "write freeblks 7"), "broken tree|number of free blocks"),
    ],
)
def test_damage_is_noticed(writes: tuple[str, ...], reason: str, image: Path, tmp_path: Path) -> None:
    copy = copy_image(image, tmp_path / "copy")
    run("xfs_db", "-x", *(word for write in writes for word in ("-c", write)), copy)
    assert re.search(reason, only_region_reason(copy))


def test_damage_never_frees_a_used_block(image: Path) -> None:
    truth = read_map(xfs.read_free_map, image)
    for free_map in survive_damage(xfs.read_free_map, image, range(120)):
        assert frees_only(free_map, truth)
