"""FAT12, FAT16, FAT32: the map against mtools, partclone, fsck.fat, poison and damage."""

from __future__ import annotations

import random
import re
import struct
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from bitarray import bitarray
from foreign_images import (
    copy_image,
    damaged_maps,
    digests,
    fill,
    frees_only,
    make_image,
    poison,
    read_map,
    run,
    used_by_partclone,
    used_units,
)

from snapfs.usedmap.fat import read_free_map
from snapfs.usedmap.fat_geometry import read_geometry
from snapfs.usedmap.result import FreeMap, MapError
from snapfs.usedmap.source import Source

KIB, MIB = 1 << 10, 1 << 20
UNCHECKED = {"MTOOLS_SKIP_CHECK": "1"}


@dataclass(frozen=True)
class Case:
    """How a volume is made."""

    name: str
    size: int
    options: str
    bits: int


CASES = [
    Case("fat12-floppy", 1440 * KIB, "-F 12", 12),
    Case("fat12-one-fat", 4 * MIB, "-F 12 -f 1 -s 4", 12),
    Case("fat12-sectors-4096", 8 * MIB, "-F 12 -S 4096 -s 1", 12),
    Case("fat16-clusters-512", 16 * MIB, "-F 16 -s 1", 16),
    Case("fat16-clusters-32k", 160 * MIB, "-F 16 -s 64", 16),
    Case("fat16-odd-size", 24 * MIB + 5 * 512, "-F 16 -s 2 -R 3 -r 1024", 16),
    Case("fat32-clusters-512", 48 * MIB, "-F 32 -s 1", 32),
    Case("fat32-clusters-4k", 300 * MIB, "-F 32 -s 8", 32),
    Case("fat32-one-fat", 48 * MIB, "-F 32 -s 1 -f 1", 32),
    Case("fat16-three-fats", 16 * MIB, "-F 16 -s 1 -f 3", 16),
    Case("fat32-four-fats", 48 * MIB, "-F 32 -s 1 -f 4", 32),
    Case("fat32-no-backup", 48 * MIB, "-F 32 -s 1 -b 0 -a", 32),
    Case("fat32-sectors-4096", 300 * MIB, "-F 32 -S 4096 -s 1", 32),
]
BY_NAME = {case.name: case for case in CASES}
# fsck.fat knows no more than two FATs; of these volumes mtools is the only judge.
WITHOUT_FSCK = ("fat16-three-fats", "fat32-four-fats")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fat")


def make_fat(path: Path, case: Case) -> Path:
    run("mkfs.fat", *case.options.split(), make_image(path, case.size))
    return path


def fill_fat(path: Path, work: Path) -> None:
    """Files in nested directories by mtools; some are deleted and others put into their place."""
    files = work / "files"
    if not files.exists():
        files.mkdir()
        fill(files)
    # The smallest volume holds one of the folders.
    folders = [f"folder-{number}" for number in range(1 if path.stat().st_size < 3 * MIB else 5)]
    run("mcopy", "-s", "-Q", "-i", path, *(files / folder for folder in folders), "::/", env=UNCHECKED)
    if len(folders) > 1:
        run("mdeltree", "-i", path, "::/folder-2", env=UNCHECKED)
        run("mcopy", "-i", path, files / "last.bin", "::/", env=UNCHECKED)


@pytest.fixture(scope="module", params=[case.name for case in CASES])
def filled(request: pytest.FixtureRequest, work: Path) -> Path:
    path = make_fat(work / f"{request.param}.img", BY_NAME[request.param])
    fill_fat(path, work)
    return path


def made(name: str, work: Path) -> Path:
    """A filled volume of that case, made once."""
    path = work / f"{name}-base.img"
    if not path.exists():
        fill_fat(make_fat(path, BY_NAME[name]), work)
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


def unpack(path: Path, target: Path) -> Path:
    """All files of the volume, copied out."""
    if not target.exists():
        target.mkdir()
        run("mcopy", "-s", "-n", "-i", path, "::/*", target, env=UNCHECKED)
    return target


def fsck(path: Path) -> str:
    """What fsck.fat says, which may complain of nothing but a boot sector that was made without a backup."""
    return run("fsck.fat", "-n", "-v", path, returncodes=[1 if "no-backup" in path.name else 0])


def refusal(path: Path) -> str:
    with pytest.raises(MapError) as caught:
        read_map(read_free_map, path)
    return str(caught.value)


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


def write_at(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def fat_offsets(path: Path) -> tuple[int, ...]:
    with path.open("rb") as file:
        return read_geometry(Source(file.fileno(), path.stat().st_size)).fat_offsets


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
