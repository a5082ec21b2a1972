"""The files of a snapshot: which filesystems are shown, as they were at the cut, and what is told of the others."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browse_rig import assert_nothing_left, browsed, ext4_with, files_of, make_disk
from cut_rig import MIB, MKFS, CutGround, cut, run, snapfs
from mounted import Mounted

from snapfs.system.btrfs_control import forget_device

# What a cut leaves to be replayed on XFS, even a frozen one, are changes of its superblock.
PLAIN = {"ext4": "ro", "xfs": "ro,nouuid,norecovery", "btrfs": "ro"}
WITHOUT_REPLAY = {"ext4": "ro,noload", "xfs": "ro,nouuid,norecovery", "btrfs": "ro,rescue=nologreplay"}


@pytest.fixture
def place(ground: CutGround) -> Iterator[Path]:
    """An empty directory, which is one again at the end."""
    place = ground.path / "place"
    place.mkdir()
    yield place
    if os.path.ismount(place):
        done = snapfs("browse", "--end", place)
        assert done.returncode == 0, done.stderr
    assert_nothing_left(ground, place)


def live_filesystem(ground: CutGround, fstype: str) -> tuple[Mounted, Path]:
    instance = ground.mounted(ground.made(fstype, (64 if fstype == "ext4" else 320) * MIB))
    return instance, ground.filesystem(instance)


def write(file: Path, text: str) -> None:
    with file.open("w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())


def test_an_image_that_is_one_filesystem(ground: CutGround, place: Path) -> None:
    instance = ground.mounted(ext4_with(files_of(ground, "text"), ground.path / "disk.img", "-L", "a label"))
    found = browsed(instance.live, place)
    assert (place / "file").read_text() == "text"
    (one,) = found["mounted"]
    assert (one["mount_point"], one["kind"], one["label"]) == (str(place), "ext4", "a label")
    assert (one["options"], one["is_behind"]) == ("ro", False)
    assert (found["not_mounted"], found["snapshot"]["id"]) == ([], instance.status()["snapshot"]["id"])
    options = run("findmnt", "-n", "-o", "OPTIONS", place).split(",")
    assert {"ro", "nosuid", "nodev"} <= set(options)
    with pytest.raises(OSError, match="Read-only"):
        (place / "new").touch()


@pytest.mark.parametrize("fstype", MKFS)
def test_a_frozen_cut_while_the_same_filesystem_is_written_to(ground: CutGround, place: Path, fstype: str) -> None:
    """It has the UUID of the live one, which is mounted."""
    instance, point = live_filesystem(ground, fstype)
    write(point / "file", "at the cut")
    cut(instance.live)
    write(point / "file", "later")
    write(point / "new", "later")
    run("sync", "-f", point)
    (one,) = browsed(instance.live, place)["mounted"]
    assert (place / "file").read_text() == "at the cut"
    assert not (place / "new").exists()
    assert (one["options"], one["is_behind"]) == (PLAIN[fstype], False)


@pytest.mark.parametrize("fstype", MKFS)
def test_what_would_have_to_be_replayed_is_left_out(ground: CutGround, place: Path, fstype: str) -> None:
    """As it was in the midst of being written to, when somebody copied it."""
    used, image = ground.made(fstype, (64 if fstype == "ext4" else 320) * MIB, "used.img"), ground.path / "disk.img"
    point = ground.mount(ground.loop(used))
    write(point / "early", "in place")
    run("sync", "-f", point)
    write(point / "late", "x" * 5000)
    run("cp", "--sparse=always", used, image)
    # The kernel may take the copy for another device of the filesystem that is mounted.
    run("umount", point)
    instance = ground.mounted(image)
    done = snapfs("browse", instance.live, place)
    assert done.returncode == 0, done.stderr
    assert f"{place}  {fstype} ({WITHOUT_REPLAY[fstype]})" in done.stdout
    assert "the last moments before the cut may be missing; " in done.stderr
    assert fstype == "xfs" or (place / "early").read_text() == "in place"


def test_a_kind_that_this_kernel_may_not_know(ground: CutGround, place: Path) -> None:
    image = ground.image(16 * MIB)
    run("mkfs.fat", image)
    run("sh", "-c", f"echo text | mcopy -i {image} - ::FILE")
    instance = ground.mounted(image)
    done = snapfs("browse", instance.live, place)
    if "\tvfat\n" in Path("/proc/filesystems").read_text():
        assert (place / "file").read_text() == "text\n"
    else:
        assert (done.returncode, done.stdout) == (1, "")
        assert "(the image: this kernel mounts no vfat); look at what is in it with snapfs map" in done.stderr


def test_a_disk_has_a_directory_for_each_partition_with_files(ground: CutGround, place: Path) -> None:
    first, third = (ext4_with(files_of(ground, text), ground.path / f"{text}.img") for text in ("first", "third"))
    swap = ground.image(8 * MIB, "swap.img")
    run("mkswap", "-q", swap)
    instance = ground.mounted(make_disk(ground, first, swap, third, None))
    found = browsed(instance.live, place)
    assert sorted(os.listdir(place)) == ["p1", "p3"]
    assert [(place / name / "file").read_text() for name in ("p1", "p3")] == ["first", "third"]
    mounted = {one["partition_number"]: one["mount_point"] for one in found["mounted"]}
    assert mounted == {1: str(place / "p1"), 3: str(place / "p3")}
    reasons = {one["partition_number"]: one["reason"] for one in found["not_mounted"]}
    assert reasons == {2: "it is swap space", 4: "nothing that snapfs knows is there"}
    with pytest.raises(OSError, match="Read-only"):
        (place / "new").mkdir()
    run("umount", "-R", place)
    assert_nothing_left(ground, place)
    done = snapfs("browse", instance.live, place)
    assert [line.split()[0] for line in done.stdout.splitlines()] == [str(place / "p1"), str(place / "p3")]
    assert done.stderr == (
        "snapfs: p2 is not mounted: it is swap space.\n"
        "snapfs: p4 is not mounted: nothing that snapfs knows is there.\n"
    )


def test_a_filesystem_that_the_kernel_refuses_is_a_problem(ground: CutGround, place: Path) -> None:
    good = ext4_with(files_of(ground, "good"), ground.path / "good.img")
    bad = ext4_with(files_of(ground, "bad"), ground.path / "bad.img")
    run("debugfs", "-w", "-R", "set_super_value inodes_per_group 3", bad)
    instance = ground.mounted(make_disk(ground, good, bad))
    done = snapfs("browse", instance.live, place, "-q")
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("snapfs: p2 is not mounted: the kernel does not mount this ext4 (")
    assert os.listdir(place) == ["p1"]


def test_a_btrfs_on_several_devices_is_refused(ground: CutGround, place: Path) -> None:
    """Its other device is attached, and would be taken for the one of the cut."""
    ours, other = (ground.image(160 * MIB, name) for name in ("disk.img", "other.img"))
    first, second = ground.loop(ours), ground.loop(other)
    run("mkfs.btrfs", "-q", "-f", first, second)
    ground.drop_loop(first)
    instance = ground.mounted(ours)
    run("btrfs", "device", "scan", second)
    done = snapfs("browse", instance.live, place)
    run("btrfs", "device", "scan", "--forget")
    assert done.returncode == 1
    assert "(the image: it lies on 2 devices, of which this is one)" in done.stderr


@pytest.mark.parametrize("is_disk", [False, True])
def test_nothing_that_can_be_shown(ground: CutGround, place: Path, is_disk: bool) -> None:
    swap = ground.image(8 * MIB, "swap.img")
    run("mkswap", "-q", swap)
    instance = ground.mounted(make_disk(ground, swap) if is_disk else swap)
    done = snapfs("browse", instance.live, place, "--json")
    assert (done.returncode, done.stdout) == (1, "")
    what = "p1" if is_disk else "the image"
    assert done.stderr == (
        f"snapfs: No files of {instance.snap_file} can be shown ({what}: it is swap space); "
        f"look at what is in it with snapfs map {instance.snap}.\n"
    )


def test_a_lost_snapshot_is_not_shown(ground: CutGround, place: Path) -> None:
    instance = ground.mounted(ground.image(os.urandom(MIB)), "--buffer-limit", "4K")
    write(instance.live_file, "x" * MIB)
    assert instance.status()["snapshot"]["state"] == "overflowed"
    done = snapfs("browse", instance.live, place)
    assert (done.returncode, "is overflowed" in done.stderr) == (3, True)
    instance.expect_log("")


def test_what_is_shown_is_over_with_the_next_cut(ground: CutGround, place: Path) -> None:
    files = files_of(ground, "text")
    (files / "large").write_bytes(bytes(range(1, 256)) * 4096)
    instance = ground.mounted(ext4_with(files, ground.path / "disk.img"))
    browsed(instance.live, place)
    cut(instance.live)
    with pytest.raises(OSError, match="error") as raised:
        (place / "large").read_bytes()
    assert raised.value.errno == errno.EIO
    assert snapfs("browse", "--end", place).returncode == 0
    browsed(instance.live, place)
    assert (place / "large").read_bytes() == (files / "large").read_bytes()


def test_a_btrfs_on_a_device_whose_number_another_one_had(ground: CutGround, place: Path) -> None:
    """The kernel knows the devices of a btrfs on several of them for longer than they are there."""
    instance, point = live_filesystem(ground, "btrfs")
    write(point / "file", "text")
    cut(instance.live)
    loops = [ground.loop(ground.image(128 * MIB, f"{name}.img")) for name in ("one", "other")]
    run("mkfs.btrfs", "-q", "-f", "-d", "raid0", "-m", "raid0", *loops)
    run("btrfs", "device", "scan", *loops)
    for loop in list(loops):
        ground.drop_loop(loop)
    try:
        # The lowest number that is free, so most likely the first of them.
        browsed(instance.live, place)
        assert (place / "file").read_text() == "text"
    finally:
        for loop in loops:
            forget_device(loop)


def test_the_object_of_the_end_has_what_was_unmounted(ground: CutGround, place: Path) -> None:
    part = ext4_with(files_of(ground, "text"), ground.path / "part.img")
    instance = ground.mounted(make_disk(ground, part))
    browsed(instance.live, place)
    unmounted = json.loads(snapfs("browse", "--end", place, "--json").stdout)
    assert unmounted == {"version": 1, "unmounted": [str(place / "p1"), str(place)]}


def test_an_older_snapshot_by_its_name(ground: CutGround, place: Path) -> None:
    """Neither the next cut nor a mount of the newest beside it takes anything from it."""
    instance, point = live_filesystem(ground, "ext4")
    for name in ("mon", "tue"):
        write(point / "file", name)
        cut(instance.live, "--name", name)
    write(point / "file", "later")
    found = browsed(instance.live, place, "mon")
    assert (found["snapshot"]["name"], found["mounted"][0]["is_behind"]) == ("mon", False)
    cut(instance.live)
    newest = ground.path / "newest"
    browsed(instance.live, newest)
    run("sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
    assert (place / "file").read_text() == "mon"
    assert (newest / "file").read_text() == "later"
    assert snapfs("browse", "--end", newest).returncode == 0


def test_the_next_cut_ends_nothing_of_one_with_a_name(ground: CutGround, place: Path) -> None:
    instance, point = live_filesystem(ground, "ext4")
    (point / "file").write_bytes(content := os.urandom(8 * MIB))
    cut(instance.live, "--name", "mon")
    browsed(instance.live, place)
    (point / "file").write_bytes(os.urandom(8 * MIB))
    cut(instance.live)
    run("sync", "-f", point)
    assert (place / "file").read_bytes() == content


def test_a_view_is_not_unmounted_under_the_files_of_an_older_one(ground: CutGround, place: Path) -> None:
    instance, _ = live_filesystem(ground, "ext4")
    run("umount", ground.path / "fs")
    cut(instance.live, "--name", "mon")
    cut(instance.live)
    browsed(instance.live, place, "mon")
    done = snapfs("umount", instance.live)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"snapfs browse --end {place}" in done.stderr
