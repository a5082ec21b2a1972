"""Maps of XFS: equal to xfs_db and partclone, and everything called free may be overwritten."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import pytest
from foreign_images import copy_image, digests, fill, frees_only, read_map, run, used_by_partclone, used_units
from linux_images import (
    MIB,
    check_poisoned,
    filled_filesystem,
    free_by_xfs_db,
    frozen,
    make_filesystem,
    mounted,
    only_region_reason,
    scatter,
    survive_damage,
)

from snapfs.usedmap import xfs
from snapfs.usedmap.result import MapError

SIZE = 320 * MIB

OPTIONS: dict[str, tuple[str, ...]] = {
    "default": (),
    "blocks of 1K": ("-b", "size=1024"),
    "blocks of 2K": ("-b", "size=2048"),
    "many groups": ("-d", "agcount=13", "-l", "size=16m,agnum=5", "--unsupported"),
    "sectors of 4K": ("-s", "size=4096"),
    "reverse mapping": ("-m", "rmapbt=1,reflink=1"),
    "few features": ("-m", "finobt=0,reflink=0,bigtime=0,inobtcount=0"),
    "log stripes": ("-l", "su=262144"),
    "large log": ("-l", "size=64m"),
    "odd size": ("-d", f"size={SIZE - 12288}"),
}


@pytest.fixture(scope="module", params=OPTIONS)
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """(image, digests of its files) of a filesystem made with one set of options, and unmounted."""
    work = tmp_path_factory.mktemp("xfs")
    with filled_filesystem("xfs", work, SIZE, *OPTIONS[request.param], file_bytes=1500) as made:
        yield made


def test_the_map_is_the_one_of_xfs_db(filled) -> None:
    image, _ = filled
    free_map = read_map(xfs.read_free_map, image)
    assert free_map.free == free_by_xfs_db(image, free_map)


def test_everything_called_free_may_be_overwritten(filled, tmp_path: Path) -> None:
    image, expected = filled
    check_poisoned("xfs", image, tmp_path, read_map(xfs.read_free_map, image), expected)


def test_nothing_is_free_that_partclone_calls_used(tmp_path: Path) -> None:
    image = make_filesystem("xfs", tmp_path / "image", SIZE)
    free_map = read_map(xfs.read_free_map, image)
    used = used_units(free_map, used_by_partclone("xfs", image, tmp_path))
    assert not (free_map.free & used).any()


def test_a_new_filesystem_has_a_map(tmp_path: Path) -> None:
    image = make_filesystem("xfs", tmp_path / "image", SIZE)
    free_map = read_map(xfs.read_free_map, image)
    assert free_map.free == free_by_xfs_db(image, free_map)


def test_a_tree_of_several_levels(tmp_path: Path) -> None:
    image = make_filesystem("xfs", tmp_path / "image", SIZE, "-b", "size=1024", "-d", "agcount=2")
    with mounted(image, tmp_path / "mnt") as directory:
        scatter(directory, 3000, 1000)
        expected = digests(directory)
    level = run("xfs_db", "-r", "-c", "agf 0", "-c", "p bnolevel", image)
    assert int(level.split("=")[1]) >= 2
    free_map = read_map(xfs.read_free_map, image)
    assert free_map.free == free_by_xfs_db(image, free_map)
    check_poisoned("xfs", image, tmp_path, free_map, expected)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_filesystem("xfs", tmp_path / "image", SIZE)


def test_a_log_with_changes_makes_it_count_as_used(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mnt") as directory:
        fill(directory)
        os.sync()
        copy = copy_image(image, tmp_path / "copy")
    assert "needs log recovery" in only_region_reason(copy)


def test_mounted_and_untouched_it_is_as_clean_as_before(image: Path, tmp_path: Path) -> None:
    before = read_map(xfs.read_free_map, image)
    with mounted(image, tmp_path / "mnt"):
        copy = copy_image(image, tmp_path / "copy")
    assert read_map(xfs.read_free_map, copy).free == before.free


def test_a_frozen_filesystem_has_a_map(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mnt") as directory:
        fill(directory)
        expected = digests(directory)
        with frozen(directory):
            copy = copy_image(image, tmp_path / "copy")
    assert "<DIRTY>" in run("xfs_logprint", "-t", copy)
    free_map = read_map(xfs.read_free_map, copy)
    assert free_map.free == free_by_xfs_db(copy, free_map)
    check_poisoned("xfs", copy, tmp_path, free_map, expected, recovers=True)


def test_frozen_again_and_again(tmp_path: Path) -> None:
    """After each freeze the map is there, wherever in its log the filesystem is; the log goes round several times."""
    image = make_filesystem("xfs", tmp_path / "image", SIZE, "-l", "size=6m", "--unsupported")
    with mounted(image, tmp_path / "mnt") as directory:
        for turn in range(20):
            (directory / str(turn)).mkdir()
            fill(directory / str(turn), seed=turn)
            churn(directory, 1000)
            with frozen(directory):
                copy = copy_image(image, tmp_path / "copy")
            free_map = read_map(xfs.read_free_map, copy)
            assert free_map.free == free_by_xfs_db(copy, free_map)
    assert last_cycle(image) >= 3


def last_cycle(image: Path) -> int:
    """The cycle of the log in which the first header was last written."""
    text = run("xfs_db", "-r", "-c", "agf 0", "-c", "p lsn", image)
    return int(text.split("=")[1], 16) >> 32


def churn(directory: Path, count: int) -> None:
    """Metadata changes that fill the log."""
    for number in range(count):
        (directory / f"churn-{number % 25}").mkdir()
        if number % 25 == 24:
            os.sync()
            for other in range(25):
                (directory / f"churn-{other}").rmdir()


def test_a_grown_filesystem(image: Path, tmp_path: Path) -> None:
    with image.open("r+b") as file:
        file.truncate(SIZE + 50 * MIB)
    with mounted(image, tmp_path / "mnt") as directory:
        run("xfs_growfs", directory)
        fill(directory)
        expected = digests(directory)
    free_map = read_map(xfs.read_free_map, image)
    assert len(free_map.free) > SIZE // 4096
    assert free_map.free == free_by_xfs_db(image, free_map)
    check_poisoned("xfs", image, tmp_path, free_map, expected)


def test_a_need_for_repair_makes_it_count_as_used(image: Path) -> None:
    run("xfs_db", "-x", "-c", "sb 0", "-c", "write -d features_incompat 0x1b", image)
    assert "in need of repair" in only_region_reason(image)


def test_an_unknown_feature_makes_it_count_as_used(image: Path) -> None:
    run("xfs_db", "-x", "-c", "sb 0", "-c", "write -d features_incompat 0x8000000b", image)
    assert "unknown features" in only_region_reason(image)


def test_an_external_log_makes_it_count_as_used(tmp_path: Path) -> None:
    image = make_filesystem("xfs", tmp_path / "image", SIZE)
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(64 * MIB)
    run("mkfs.xfs", "-q", "-f", "-l", f"logdev={log},size=64m", image)
    assert "log elsewhere" in only_region_reason(image)


def test_a_wrong_count_of_free_blocks_is_noticed(image: Path) -> None:
    run("xfs_db", "-x", "-c", "agf 1", "-c", "write -d freeblks 4711", image)
    with pytest.raises(MapError, match="its tree contradicts"):
        read_map(xfs.read_free_map, image)


def test_a_lost_write_of_a_whole_group_header_is_noticed(image: Path, tmp_path: Path) -> None:
    """Header and trees as they were before: right in themselves, but not what the superblock counts."""
    older = copy_image(image, tmp_path / "older")
    with mounted(image, tmp_path / "mnt") as directory:
        fill(directory)
    with older.open("rb") as before, image.open("r+b") as file:
        before.seek(4096 // 8)
        file.seek(4096 // 8)
        file.write(before.read(64 * 1024))
    with pytest.raises(MapError, match="its allocation groups contradict"):
        read_map(xfs.read_free_map, image)


def test_a_hole_in_the_log_is_noticed(image: Path, tmp_path: Path) -> None:
    """A block of the last writes that never arrived: its old cycle number stands there."""
    with mounted(image, tmp_path / "mnt") as directory:
        fill(directory)
        with frozen(directory):
            copy = copy_image(image, tmp_path / "copy")
    log_start, block_log, ag_blocks, head = log_facts(copy)
    offset = (log_start >> block_log) * ag_blocks * 4096 + (log_start & (1 << block_log) - 1) * 4096
    with copy.open("r+b") as file:
        file.seek(offset + (head - 3) * 512)
        file.write(struct.pack(">I", 0))
    assert "needs log recovery" in only_region_reason(copy)


def log_facts(path: Path) -> tuple[int, int, int, int]:
    text = run("xfs_db", "-r", "-c", "sb 0", "-c", "p logstart agblklog agblocks", path)
    head = re.search(r"head: (\d+)", run("xfs_logprint", "-t", path))
    assert head is not None
    log_start, block_log, ag_blocks = map(int, re.findall(r"= (\d+)", text))
    return log_start, block_log, ag_blocks, int(head[1])


FORMATTERS = {
    "xfs_repair -L": "xfs_repair -L {image}",
    "xfs_admin -U": "xfs_admin -U generate {image}",
    "xfs_copy": "truncate -s 0 {copy}; xfs_copy -L {copy}.log {image} {copy}; mv {copy} {image}",
    "xfs_mdrestore": "xfs_metadump -o {image} {copy}.md; xfs_mdrestore {copy}.md {copy}; mv {copy} {image}",
}


@pytest.mark.parametrize("tool", FORMATTERS)
def test_a_log_formatted_anew_is_clean(tool: str, image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mnt") as directory:
        fill(directory)
    run("sh", "-ec", FORMATTERS[tool].format(image=image, copy=tmp_path / "copy"))
    assert "<CLEAN>" in run("xfs_logprint", "-t", image)
    free_map = read_map(xfs.read_free_map, image)
    assert free_map.free == free_by_xfs_db(image, free_map)


def test_after_its_log_was_formatted_anew_it_is_followed(image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mnt") as directory:
        fill(directory)
    run("xfs_repair", "-L", image)
    with mounted(image, tmp_path / "mnt") as directory:
        scatter(directory, 100, 9000)
        expected = digests(directory)
        with frozen(directory):
            copy = copy_image(image, tmp_path / "copy")
        (directory / "after").write_bytes(bytes(100_000))
        os.sync()
        dirty = copy_image(image, tmp_path / "dirty")
    check_poisoned("xfs", copy, tmp_path, read_map(xfs.read_free_map, copy), expected, recovers=True)
    assert "needs log recovery" in only_region_reason(dirty)


@pytest.mark.parametrize("state", ["unmounted", "frozen"])
def test_damage_never_frees_a_used_block(state: str, image: Path, tmp_path: Path) -> None:
    with mounted(image, tmp_path / "mnt") as directory:
        fill(directory)
        if state == "frozen":
            with frozen(directory):
                frozen_image = copy_image(image, tmp_path / "copy")
    subject = frozen_image if state == "frozen" else image
    truth = read_map(xfs.read_free_map, subject)
    for free_map in survive_damage(xfs.read_free_map, subject, range(300)):
        assert frees_only(free_map, truth)
