"""What somebody writes at a cut without the kernel's filesystems has a map only where its format tells by itself."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cut_rig import cut, run
from mounted import Mounted, snapfs
from used_rig import MIB, UsedGround, await_map

SIZE = 48 * MIB
# A loop device may have partitions left from whoever had it before: that is no reason to refuse (-I).
FAT = ("mkfs.fat", "-I", "-F", "16")
NO_JOURNAL = ("mkfs.ext4", "-q", "-F", "-O", "^has_journal")
# Python's own mmap would keep a descriptor.
MAPS_AND_CLOSES = """
import ctypes, os, sys
mmap = ctypes.CDLL(None).mmap
mmap.restype, mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, *3 * [ctypes.c_int], ctypes.c_long]
PROT_READ_WRITE, MAP_SHARED = 3, 1
assert mmap(None, 4096, PROT_READ_WRITE, MAP_SHARED, int(sys.argv[1]), 0) != ctypes.c_void_p(-1).value
os.close(int(sys.argv[1]))
print("mapped", flush=True)
sys.stdin.readline()
"""
TABLE = "start=2048, size=40960, type=c\nstart=43008, size=40960, type=c\n"


def made(ground: UsedGround, *mkfs: str, size: int = SIZE) -> Mounted:
    image = ground.image(size)
    run(*mkfs, image)
    return ground.mounted(image)


def regions(instance: Mounted) -> dict[int, dict[str, Any]]:
    """The filesystems of the present snapshot by where they begin."""
    found = await_map(instance)["regions"]
    return {region["offset"]: region for region in found if region["kind"] not in ("dos", "gap")}


@contextmanager
def held(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


def this_process() -> str:
    return f"process {os.getpid()} ("


@pytest.mark.parametrize("mkfs", [FAT, ("mkfs.exfat",), ("mkfs.ntfs", "-q", "-F", "-Q"), NO_JOURNAL])
def test_what_somebody_has_open_for_writing_counts_as_used(ground: UsedGround, mkfs: tuple[str, ...]) -> None:
    instance = made(ground, *mkfs)
    assert regions(instance)[0]["state"] == "trusted"
    with held(instance.live_file):
        taken = cut(instance.live)
    (writer,) = taken["writers"]
    assert writer["name"].startswith(this_process())
    region = regions(instance)[0]
    assert (region["state"], region["free_bytes"]) == ("all-used", 0)
    assert region["reason"] == f"{writer['name']} was writing at the cut, and nothing froze it"
    assert snapfs("status", instance.live).stdout.count(region["reason"]) == 1


def test_formats_that_tell_by_themselves_keep_their_map(ground: UsedGround) -> None:
    instance = made(ground, "mkfs.ext4", "-q", "-F")
    with held(instance.live_file):
        assert len(cut(instance.live)["writers"]) == 1
    assert regions(instance)[0]["state"] == "trusted"


def test_a_descriptor_for_reading_is_no_writer(ground: UsedGround) -> None:
    instance = made(ground, *FAT)
    with held(instance.live_file, os.O_RDONLY):
        assert cut(instance.live)["writers"] == []
    assert regions(instance)[0]["state"] == "trusted"


def test_a_mapping_whose_descriptor_is_closed_is_a_writer_that_nobody_sees(ground: UsedGround) -> None:
    """The server of the file knows of it; a list of descriptors does not."""
    instance = made(ground, *FAT)
    fd = os.open(instance.live_file, os.O_RDWR)
    words = ["python3", "-c", MAPS_AND_CLOSES, str(fd)]
    with subprocess.Popen(words, pass_fds=[fd], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        os.close(fd)
        assert process.stdout is not None
        assert process.stdout.readline() == "mapped\n"
        taken = cut(instance.live)
        process.communicate("\n", timeout=20)
    assert [writer["name"] for writer in taken["writers"]] == ["a process that cannot be seen from here"]
    assert regions(instance)[0]["state"] == "all-used"


def test_a_loop_device_under_a_frozen_filesystem_is_no_writer(ground: UsedGround) -> None:
    instance = made(ground, "mkfs.ext4", "-q", "-F")
    point = ground.mount(ground.loop(instance.live_file))
    taken = cut(instance.live)
    assert (taken["frozen"], taken["writers"]) == ([str(point)], [])
    assert regions(instance)[0]["state"] == "trusted"


def test_a_loop_device_that_nobody_uses_is_no_writer(ground: UsedGround) -> None:
    instance = made(ground, *FAT)
    ground.loop(instance.live_file)
    assert cut(instance.live)["writers"] == []
    assert regions(instance)[0]["state"] == "trusted"


def test_a_frozen_filesystem_without_a_journal_is_trusted_beside_a_writer(ground: UsedGround) -> None:
    instance = made(ground, *NO_JOURNAL)
    device = ground.loop(instance.live_file)
    point = ground.mount(device)
    with held(device):
        taken = cut(instance.live)
    assert taken["frozen"] == [str(point)]
    assert len(taken["writers"]) == 1
    assert regions(instance)[0]["state"] == "trusted"


def test_who_writes_to_a_partition_hides_only_that(ground: UsedGround) -> None:
    image = ground.image(SIZE)
    subprocess.run(["sfdisk", "-q", image], input=TABLE, text=True, check=True, timeout=20)
    instance = ground.mounted(image)
    parts = [
        ground.loop(instance.live_file, f"--offset={no * 512}", f"--sizelimit={20 * MIB}") for no in (2048, 43008)
    ]
    for part in parts:
        run(*FAT, part)
    with held(parts[1]):
        taken = cut(instance.live)
    assert [(one["offset"], one["length"]) for one in taken["writers"]] == [(43008 * 512, 20 * MIB)]
    states = {offset: region["state"] for offset, region in regions(instance).items()}
    assert states == {MIB: "trusted", 43008 * 512: "all-used"}


def test_an_exfat_written_by_a_driver_in_user_space_counts_as_used(ground: UsedGround) -> None:
    instance = made(ground, "mkfs.exfat")
    point = ground.path / "exfat"
    point.mkdir()
    run("mount.exfat-fuse", ground.loop(instance.live_file), point)
    (point / "file").write_bytes(bytes(MIB))
    taken = cut(instance.live)
    run("umount", point)
    assert taken["not_frozen"] or taken["writers"]
    assert regions(instance)[0]["state"] == "all-used"


def test_a_snapshot_that_is_carried_on_still_knows_who_wrote(ground: UsedGround) -> None:
    image = ground.image(SIZE)
    run(*FAT, image)
    store = ground.path / "store"
    instance = ground.mounted(image, "--store", store)
    with held(instance.live_file):
        cut(instance.live)
    before = regions(instance)[0]
    assert snapfs("umount", instance.live).returncode == 0
    assert regions(ground.mounted(image, "--store", store))[0] == before


def test_a_writer_is_named_for_people(ground: UsedGround) -> None:
    instance = made(ground, *FAT)
    with held(instance.live_file):
        lines = snapfs("snapshot", instance.live).stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("written by")]
    assert this_process() in line


def test_the_first_cut_has_no_writers(ground: UsedGround) -> None:
    """Nobody can have opened what was not there; later writers change the live view only."""
    instance = made(ground, *FAT)
    with held(instance.live_file) as fd:
        os.pwrite(fd, mmap.PAGESIZE * b"x", 24 * MIB)
        assert regions(instance)[0]["state"] == "trusted"
