"""A copy of the snapshot on an empty disk is whole, though what was free is not in it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cut_rig import cut
from foreign_images import digests, fill
from mounted import Mounted, run
from used_rig import MIB, MKFS, READ_ONLY, UsedGround, await_map

SIZE_BYTES = 320 * MIB
# mkfs.xfs makes nothing smaller than 300 MiB.
PARTS = {"ext4": (1 * MIB, 64 * MIB), "xfs": (65 * MIB, 304 * MIB)}
TABLE = "label: gpt\nstart=2048, size=131072\nstart=133120, size=622592\n"


def change(point: Path) -> None:
    """What users do after the cut: some files go, some are rewritten, new ones take the place."""
    for number, path in enumerate(sorted(point.rglob("*.bin"))):
        if number % 3:
            path.unlink()
        else:
            path.write_bytes(b"new" * 50_000)
    run("sync", "-f", point)
    fill(point, seed=2)
    run("sync", "-f", point)


def copied(ground: UsedGround, instance: Mounted) -> Path:
    """The snapshot, copied with dd onto an image of zeros."""
    copy = ground.image(instance.snap_file.stat().st_size, "copy.img")
    run("dd", f"if={instance.snap_file}", f"of={copy}", "bs=1M", "conv=sparse,notrunc", "status=none")
    return copy


def check(ground: UsedGround, copy: Path, fstype: str, files: dict[str, str], part: tuple[int, int] | None) -> None:
    """Every file is there, and the filesystem's own check has nothing to say."""
    with ground.opened(copy, "-o", READ_ONLY[fstype], part=part) as point:
        assert digests(point) == files
    if fstype == "xfs":
        # Its count of free blocks leaves out what is reserved until it has been unmounted.
        with ground.opened(copy, "-o", "nouuid", part=part):
            pass
    place = () if part is None else (f"--offset={part[0]}", f"--sizelimit={part[1]}")
    device = ground.loop(copy, "--read-only", *place)
    checks = {
        "ext4": ("e2fsck", "-fn"),
        "xfs": ("xfs_repair", "-n"),
        "btrfs": ("btrfs", "check", "--readonly", "--check-data-csum"),
    }
    run(*checks[fstype], device)
    ground.drop_loop(device)


@pytest.mark.parametrize("fstype", MKFS)
def test_a_copy_of_the_snapshot_is_a_whole_filesystem(ground: UsedGround, fstype: str) -> None:
    image = ground.stale(SIZE_BYTES)
    run(*MKFS[fstype], image)
    instance = ground.mounted(image)
    with ground.opened(instance.live_file) as point:
        fill(point)
        files = digests(point)
        assert cut(instance.live)["frozen"] == [str(point)]
        change(point)
        snapshot = await_map(instance)
        change(point)
        assert [region["state"] for region in snapshot["regions"]] == ["trusted"]
        assert snapshot["used_blocks"] * 4096 < SIZE_BYTES / 2
    check(ground, copied(ground, instance), fstype, files, None)


def test_a_copy_of_a_disk_with_two_filesystems_is_whole(ground: UsedGround) -> None:
    image = ground.stale(370 * MIB)
    subprocess.run(["sfdisk", "-q", image], input=TABLE, text=True, check=True, timeout=20)
    instance = ground.mounted(image)
    files = {}
    for fstype, (offset, length) in PARTS.items():
        device = ground.loop(instance.live_file, f"--offset={offset}", f"--sizelimit={length}")
        run(*MKFS[fstype], device)
        ground.drop_loop(device)
    with (
        ground.opened(instance.live_file, name="ext4", part=PARTS["ext4"]) as ext4,
        ground.opened(instance.live_file, name="xfs", part=PARTS["xfs"]) as xfs,
    ):
        for fstype, point in (("ext4", ext4), ("xfs", xfs)):
            fill(point)
            files[fstype] = digests(point)
        assert sorted(cut(instance.live)["frozen"]) == sorted([str(ext4), str(xfs)])
        snapshot = await_map(instance)
        trusted = [region["kind"] for region in snapshot["regions"] if region["state"] == "trusted"]
        assert trusted == ["ext4", "xfs"]
        for point in (ext4, xfs):
            change(point)
    copy = copied(ground, instance)
    assert "No problems found" in run("sgdisk", "--verify", copy)
    for fstype, part in PARTS.items():
        check(ground, copy, fstype, files[fstype], part)
