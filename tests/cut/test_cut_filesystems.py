"""Which filesystems a cut freezes, wherever they are mounted, and which it names as not frozen."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from cut_rig import MIB, MKFS, CutGround, cut, freeze, is_frozen, run, snapfs, thaw
from mounted import Mounted, wait_until

from snapfs.freezing.fsfreeze import never_frozen
from snapfs.freezing.live_filesystems import find_live_filesystems

PARTED = "label: gpt\nstart=2048, size=131072\nstart=133120, size=131072\nstart=264192, size=20480\n"


@pytest.fixture
def instance(ground: CutGround) -> Mounted:
    """An ext4 in the live view, not mounted."""
    return ground.mounted(ground.made("ext4", 64 * MIB))


@pytest.fixture
def parted(ground: CutGround) -> tuple[Mounted, list[Path]]:
    """A disk with partitions of ext4, ext4 and NTFS, and their devices. This kernel may read no partition tables."""
    instance = ground.mounted(ground.image(160 * MIB))
    subprocess.run(["sfdisk", "-q", instance.live_file], input=PARTED, text=True, check=True, timeout=20)
    device = ground.loop(instance.live_file)
    run("partx", "-a", device)
    parts = [Path(f"{device}p{no}") for no in (1, 2, 3)]
    for part in parts[:2]:
        run(*MKFS["ext4"], part)
    run("mkfs.ntfs", "-q", "-F", "-Q", parts[2])
    return instance, parts


def test_two_partitions_are_frozen_and_the_third_is_named(
    ground: CutGround, parted: tuple[Mounted, list[Path]]
) -> None:
    instance, parts = parted
    points = [ground.mount(part, name=f"p{no}") for no, part in enumerate(parts[:2])]
    points.append(ground.mount(parts[2], "-t", "ntfs-3g", name="p2"))
    for point in points:
        (point / "file").write_bytes(b"before the cut")
    taken = cut(instance.live)
    assert sorted(taken["frozen"]) == [str(point) for point in points[:2]]
    assert taken["not_frozen"] == [
        {"mount_point": str(points[2]), "reason": "fuseblk cannot be frozen", "offset": 264192 * 512}
    ]
    for no in (0, 1):
        offset = (2048, 133120)[no] * 512
        run("e2fsck", "-fn", f"{instance.snap_file}?offset={offset}")
    for point in points:
        run("umount", point)
    for part in parts:
        run("partx", "-d", part)


def test_nothing_mounted_means_nothing_frozen(instance: Mounted) -> None:
    taken = cut(instance.live)
    assert (taken["version"], taken["frozen"], taken["not_frozen"], taken["freeze_ms"]) == (1, [], [], None)


def test_without_a_freeze_the_cut_is_made_and_everything_named(ground: CutGround, instance: Mounted) -> None:
    point = ground.filesystem(instance)
    taken = cut(instance.live, "--no-freeze")
    assert (taken["frozen"], taken["freeze_ms"]) == ([], None)
    assert taken["not_frozen"] == [{"mount_point": str(point), "reason": "no freeze was asked for", "offset": 0}]


def test_a_filesystem_in_a_part_of_the_image_is_frozen(ground: CutGround) -> None:
    instance = ground.mounted(ground.image(64 * MIB))
    device = ground.loop(instance.live_file, "--offset", str(8 * MIB))
    run(*MKFS["ext4"], device)
    point = ground.mount(device)
    assert cut(instance.live)["frozen"] == [str(point)]
    assert [one.offset for one in find_live_filesystems(instance.live_file)] == [8 * MIB]


def test_mounted_several_times_counts_once(ground: CutGround, instance: Mounted) -> None:
    device = ground.loop(instance.live_file)
    points = [ground.mount(device, name="one"), ground.mount(device, name="two")]
    ground.mount(points[0], "--bind", "-o", "ro", name="three")
    assert cut(instance.live)["frozen"] == [str(points[0])]


def test_a_read_only_mount_needs_no_freeze(ground: CutGround, instance: Mounted) -> None:
    ground.filesystem(instance, "-o", "ro")
    taken = cut(instance.live)
    assert (taken["frozen"], taken["not_frozen"]) == ([], [])


def test_a_mount_hidden_under_another_is_reached_through_a_second_one(ground: CutGround, instance: Mounted) -> None:
    device = ground.loop(instance.live_file)
    hidden = ground.mount(device, name="one")
    second = ground.mount(device, name="two")
    run("mount", "-t", "tmpfs", "none", hidden)
    (second / "file").touch()
    assert len(cut(instance.live)["frozen"]) == 1


def test_a_mount_that_nobody_can_reach_is_named(ground: CutGround, instance: Mounted) -> None:
    point = ground.filesystem(instance)
    file = (point / "file").open("wb")
    run("umount", "--lazy", point)
    taken = cut(instance.live)
    file.close()
    assert [one["reason"] for one in taken["not_frozen"]] == ["no mount of it can be reached from here"]
    assert taken["frozen"] == []


def test_a_loop_device_on_a_bind_mount_of_the_live_file_counts(ground: CutGround, instance: Mounted) -> None:
    elsewhere = ground.path / "elsewhere.img"
    elsewhere.touch()
    run("mount", "--bind", instance.live_file, elsewhere)
    point = ground.mount(ground.loop(elsewhere))
    assert cut(instance.live)["frozen"] == [str(point)]


def test_a_mount_of_another_namespace_is_frozen(ground: CutGround, instance: Mounted) -> None:
    device, point = ground.loop(instance.live_file), ground.path / "unseen"
    point.mkdir()
    script = f"mount {device} {point} && echo mounted && read line && umount {point}"
    other = ground.started("unshare", "--mount", "sh", "-c", script)
    assert other.stdout is not None
    assert other.stdout.readline() == "mounted\n"
    taken = cut(instance.live)
    other.communicate("\n", timeout=20)
    assert [Path(path).name for path in taken["frozen"]] == ["unseen"]
    assert taken["frozen"][0].startswith("/proc/")


def test_a_filesystem_in_a_file_of_another_is_frozen_first(ground: CutGround, instance: Mounted) -> None:
    outer = ground.filesystem(instance, name="outer")
    with (outer / "inner.img").open("wb") as file:
        file.truncate(32 * MIB)
    run(*MKFS["ext4"], outer / "inner.img")
    inner = ground.mount(ground.loop(outer / "inner.img"), name="inner")
    (inner / "file").write_bytes(os.urandom(MIB))
    assert cut(instance.live)["frozen"] == [str(inner), str(outer)]
    assert not is_frozen(inner)
    snapshot = ground.mount(ground.loop(instance.snap_file, "--read-only"), "-o", "ro,noload", name="snapshot")
    shutil.copy(snapshot / "inner.img", ground.path / "copy.img")
    run("e2fsck", "-fn", ground.path / "copy.img")


@pytest.mark.parametrize("fstype", ["xfs", "btrfs"])
def test_other_families_are_found(ground: CutGround, fstype: str) -> None:
    instance = ground.mounted(ground.made(fstype, 320 * MIB))
    point = ground.filesystem(instance)
    assert cut(instance.live)["frozen"] == [str(point)]


def test_a_btrfs_is_found_by_any_of_its_devices(ground: CutGround) -> None:
    instance = ground.mounted(ground.image(160 * MIB))
    other, ours = ground.loop(ground.image(160 * MIB, "other.img")), ground.loop(instance.live_file)
    run("mkfs.btrfs", "-q", "-f", other, ours)
    run("btrfs", "device", "scan", other, ours)
    point = ground.mount(other)
    assert cut(instance.live)["frozen"] == [str(point)]
    run("umount", point)
    run("btrfs", "device", "scan", "--forget")


def test_what_somebody_else_has_frozen_stays_frozen(ground: CutGround, instance: Mounted) -> None:
    point = ground.filesystem(instance)
    freeze(point)
    taken = cut(instance.live)
    assert is_frozen(point)
    thaw(point)
    assert taken["not_frozen"][0]["reason"] == "it is already frozen by somebody else"


def test_the_filesystem_of_the_hooks_is_never_frozen(ground: CutGround, instance: Mounted) -> None:
    point = ground.filesystem(instance)
    (point / "hooks").mkdir()
    taken = cut(instance.live, "--hooks", point / "hooks")
    assert taken["not_frozen"] == [{"mount_point": str(point), "reason": "it holds the hook scripts", "offset": 0}]


def test_the_filesystem_of_the_store_is_never_frozen_nor_what_it_lies_in(
    ground: CutGround, instance: Mounted
) -> None:
    outer = ground.filesystem(instance, name="outer")
    with (outer / "inner.img").open("wb") as file:
        file.truncate(32 * MIB)
    run(*MKFS["ext4"], outer / "inner.img")
    inner = ground.mount(ground.loop(outer / "inner.img"), name="inner")
    found = find_live_filesystems(instance.live_file)
    reasons = never_frozen(found, {"the store": [inner / "store"]})
    assert [one.name for one in found if one.device in reasons] == [str(inner), str(outer)]
    assert set(reasons.values()) == {"it holds the store"}


def test_an_overlay_counts_with_its_upper_layer(ground: CutGround, instance: Mounted) -> None:
    if "overlay" not in Path("/proc/filesystems").read_text():
        pytest.skip("this kernel has no overlayfs")
    point = ground.filesystem(instance)
    for name in ("lower", "upper", "work"):
        (point / name).mkdir()
    layers = ",".join(f"{name}dir={point / name}" for name in ("lower", "upper", "work"))
    merged = ground.mount(Path("none"), "-t", "overlay", "-o", layers, name="merged")
    reasons = never_frozen(find_live_filesystems(instance.live_file), {"the store": [merged]})
    assert set(reasons.values()) == {"it holds the store"}


def test_a_live_view_that_is_gone_cannot_be_cut(ground: CutGround, instance: Mounted) -> None:
    with instance.snap_file.open("rb"):
        run("umount", instance.live)
        done = snapfs("snapshot", instance.snap)
        assert done.returncode == 1
        assert "is not mounted any more" in done.stderr
    instance.expect_log("goes on alone")
    run("umount", instance.snap)
    instance.await_end()


def test_the_text_names_each_on_a_line(ground: CutGround, instance: Mounted) -> None:
    point = ground.filesystem(instance)
    words = [line.split(maxsplit=1) for line in snapfs("snapshot", instance.image).stdout.splitlines()]
    assert [word[0] for word in words] == ["snapshot", "frozen", "freeze", "cut"]
    assert words[1][1] == str(point)


def test_status_tells_of_the_freeze_and_the_map_follows(ground: CutGround, instance: Mounted) -> None:
    ground.filesystem(instance)
    taken = cut(instance.live)
    assert instance.status()["snapshot"]["id"] == taken["id"]
    assert instance.status()["snapshot"]["freeze_ms"] == pytest.approx(taken["freeze_ms"], abs=0.01)
    wait_until(lambda: 0 < instance.status()["snapshot"]["used_blocks"] < 64 * MIB // 4096)


@pytest.fixture
def elsewhere(ground: CutGround) -> Path:
    """A device that is no part of the image."""
    return ground.loop(ground.image(320 * MIB, "elsewhere.img"))


def test_the_journal_of_a_filesystem_elsewhere_is_named(ground: CutGround, elsewhere: Path) -> None:
    instance = ground.mounted(ground.image(64 * MIB))
    journal = ground.loop(instance.live_file)
    run("mke2fs", "-q", "-F", "-b", "4096", "-O", "journal_dev", journal)
    run(*MKFS["ext4"], "-b", "4096", "-J", f"device={journal}", elsewhere)
    point = ground.mount(elsewhere)
    taken = cut(instance.live)
    reason = f"it is the journal of the ext4 on {point}, which is not frozen"
    assert taken["not_frozen"] == [{"mount_point": str(journal), "reason": reason, "offset": 0}]
    assert taken["frozen"] == []
    assert not is_frozen(point)


def test_the_log_of_an_xfs_elsewhere_is_named(ground: CutGround, elsewhere: Path) -> None:
    instance = ground.mounted(ground.image(80 * MIB))
    log = ground.loop(instance.live_file)
    run("mkfs.xfs", "-q", "-f", "-l", f"logdev={log},size=64m", elsewhere)
    point = ground.mount(elsewhere, "-o", f"logdev={log}")
    reasons = [one["reason"] for one in cut(instance.live)["not_frozen"]]
    assert reasons == [f"it is the log of the xfs on {point}, which is not frozen"]
    wait_until(lambda: instance.status()["snapshot"]["map"] == "ready")
    assert instance.status()["snapshot"]["used_blocks"] == 80 * MIB // 4096


def test_a_journal_in_the_image_is_quiet_with_its_filesystem(ground: CutGround) -> None:
    instance = ground.mounted(ground.image(96 * MIB))
    journal = ground.loop(instance.live_file, f"--sizelimit={32 * MIB}")
    device = ground.loop(instance.live_file, f"--offset={32 * MIB}")
    run("mke2fs", "-q", "-F", "-b", "4096", "-O", "journal_dev", journal)
    run(*MKFS["ext4"], "-b", "4096", "-J", f"device={journal}", device)
    point = ground.mount(device)
    taken = cut(instance.live)
    assert (taken["frozen"], taken["not_frozen"], taken["writers"]) == ([str(point)], [], [])
    not_frozen = cut(instance.live, "--no-freeze")["not_frozen"]
    assert sorted(one["mount_point"] for one in not_frozen) == sorted([str(journal), str(point)])
