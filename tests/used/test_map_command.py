"""`snapfs map` of mounted images and of others, in every form that it has."""

from __future__ import annotations

import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from foreign_images import used_by_partclone
from mounted import Mounted, run, snapfs
from PIL import Image
from test_used_blocks import overwrite
from used_rig import BLOCK_BYTES, MIB, MKFS, UsedGround, await_map, map_of, used_blocks

TABLE = "label: gpt\nstart=2048, size=65536, name=first\nstart=67584, size=65536, name=second\n"


@pytest.fixture
def disk(ground: UsedGround) -> Path:
    """A GPT disk with ext4 and something unknown."""
    image = ground.stale(72 * MIB)
    subprocess.run(["sfdisk", "-q", image], input=TABLE, text=True, check=True, timeout=20)
    device = ground.loop(image, f"--offset={MIB}", f"--sizelimit={32 * MIB}")
    run(*MKFS["ext4"], device)
    ground.drop_loop(device)
    return image


@pytest.fixture
def written(ground: UsedGround, disk: Path) -> Mounted:
    """The disk mounted, its map known, its first 40 MiB overwritten."""
    instance = ground.mounted(disk)
    await_map(instance)
    overwrite(instance.live_file, 40 * MIB)
    return instance


def test_the_extents_of_an_ext4_are_those_of_partclone(ground: UsedGround) -> None:
    image = ground.filled("ext4", 64 * MIB)
    found = map_of(image)
    theirs = used_by_partclone("extfs", image, ground.path)
    mine = [(extent["start"], extent["length"]) for extent in found["extents"] if extent["data"]]
    assert mine == merged(theirs)
    assert [region["state"] for region in found["regions"]] == ["trusted"]


def merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that touch, as one."""
    found: list[tuple[int, int]] = []
    for offset, length in ranges:
        if found and sum(found[-1]) == offset:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((offset, length))
    return found


def test_the_regions_of_a_disk(disk: Path) -> None:
    regions = map_of(disk)["regions"]
    parts = {region["partition_number"]: region for region in regions if region["partition_number"]}
    assert [(parts[no]["kind"], parts[no]["partition_name"], parts[no]["state"]) for no in (1, 2)] == [
        ("ext4", "first", "trusted"),
        ("unknown", "second", "all-used"),
    ]
    assert (parts[1]["offset"], parts[1]["length"]) == (MIB, 32 * MIB)
    assert all(region["free_bytes"] == 0 for region in regions if region is not parts[1])


def test_a_mounted_image_has_the_map_of_its_snapshot(disk: Path, ground: UsedGround) -> None:
    before = map_of(disk)
    instance = ground.mounted(disk)
    await_map(instance)
    overwrite(instance.live_file)
    for path in (instance.live, instance.snap, instance.image, instance.live_file):
        assert map_of(path) == before


def test_the_domain_map_says_the_same(written: Mounted) -> None:
    domain = written.live.parent / "domain"
    assert snapfs("map", written.live, "--domain", domain).returncode == 0
    lines = [line.split() for line in domain.read_text().splitlines() if not line.startswith("#")][1:]
    used = used_blocks(map_of(written.live))
    assert sum(int(length, 16) for _, length, status in lines if status == "+") == used.count() * BLOCK_BYTES
    assert sum(int(length, 16) for _, length, _ in lines) == 72 * MIB


def test_the_pictures_of_a_mounted_image(written: Mounted) -> None:
    png, svg = (written.live.parent / f"map.{kind}" for kind in ("png", "svg"))
    done = snapfs("map", written.live, "--png", png, "--svg", svg)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with Image.open(png) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 5
    words = " ".join(ElementTree.parse(svg).getroot().itertext())
    for word in ("disk.img", "first", "second", "ext4", "preserved", "changed", "free"):
        assert word in words


def test_the_picture_in_a_terminal(written: Mounted) -> None:
    done = snapfs("map", written.live)
    assert done.returncode == 0
    for word in ("free", "owed", "preserved", "changed", "first", "second"):
        assert word in done.stdout
    shares = {name: written.status()["snapshot"][f"{name}_blocks"] for name in ("owed", "preserved")}
    assert shares["owed"] == 72 * MIB // BLOCK_BYTES - 40 * MIB // BLOCK_BYTES


def test_the_blocks_of_another_size(disk: Path) -> None:
    found = map_of(disk, "--block-size", "64K")
    assert found["block_bytes"] == 65536
    assert all(extent["start"] % 65536 == 0 for extent in found["extents"])


def test_a_mounted_image_has_its_own_block_size(ground: UsedGround) -> None:
    instance = ground.mounted(ground.stale(MIB))
    done = snapfs("map", instance.live, "--block-size", "8K")
    assert (done.returncode, done.stdout) == (1, "")
    assert "leave out --block-size" in done.stderr


@pytest.mark.parametrize(
    ("name", "reason"), [("missing", "No such file"), ("empty", "is empty"), ("directory", "neither a file nor")]
)
def test_what_has_no_map_is_said_in_one_sentence(ground: UsedGround, name: str, reason: str) -> None:
    (ground.path / "directory").mkdir()
    (ground.path / "empty").touch()
    done = snapfs("map", ground.path / name, "--json")
    assert (done.returncode, done.stdout) == (1, "")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("option", ["--domain", "--png", "--svg"])
def test_a_file_that_cannot_be_written_is_said_in_one_sentence(ground: UsedGround, option: str) -> None:
    done = snapfs("map", ground.stale(MIB), option, ground.path / "nowhere" / "file")
    assert (done.returncode, done.stdout) == (1, "")
    assert "nowhere" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_block_size_that_cannot_be_is_wrong_usage(ground: UsedGround) -> None:
    done = snapfs("map", ground.stale(MIB), "--block-size", "5000")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_swap_is_free_but_for_its_header_when_asked(ground: UsedGround) -> None:
    image = ground.stale(64 * MIB)
    run("mkswap", "-q", image)
    assert map_of(image)["regions"][0]["used_bytes"] == 64 * MIB
    assert map_of(image, "--skip-swap")["regions"][0]["used_bytes"] == BLOCK_BYTES
