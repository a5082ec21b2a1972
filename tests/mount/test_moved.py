"""Views, store and image whose paths lead elsewhere now: nothing is lost, and 0 says that all is in the image."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from ground import Ground
from mounted import SERVERS, mount_points_below, run, snapfs, wait_until
from sectors import content

MIB = 1 << 20
DATA = b"written after the move"


def write(path: Path, offset: int = 5000) -> None:
    """Buffered, and nobody syncs it."""
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        file.write(DATA)


def expected(old: bytes, offset: int = 5000) -> bytes:
    return old[:offset] + DATA + old[offset + len(DATA) :]


@pytest.mark.parametrize("named", ["live", "snap", "image"])
def test_umount_after_the_parent_of_the_views_was_renamed(ground: Ground, named: str) -> None:
    old = content(MIB)
    instance = ground.mounted(ground.image(old), name="before")
    moved = (ground.path / "before").rename(ground.path / "after")
    write(moved / "live" / "disk.img")
    done = snapfs("umount", instance.image if named == "image" else moved / named)
    assert done.returncode == 0, done.stderr
    instance.await_end()
    assert mount_points_below(ground.path) == []
    assert instance.image.read_bytes() == expected(old)
    assert not instance.store.exists()


def test_sigterm_after_the_parent_of_the_views_was_renamed(ground: Ground) -> None:
    old = content(MIB)
    instance = ground.mounted(ground.image(old), name="before")
    moved = (ground.path / "before").rename(ground.path / "after")
    write(moved / "live" / "disk.img")
    instance.processes["supervisor"].send(signal.SIGTERM)
    instance.await_end()
    assert mount_points_below(ground.path) == []
    assert instance.image.read_bytes() == expected(old)


def test_one_view_follows_the_other_after_a_rename(ground: Ground) -> None:
    old = content(MIB)
    instance = ground.mounted(ground.image(old), name="before")
    moved = (ground.path / "before").rename(ground.path / "after")
    write(moved / "live" / "disk.img")
    run("umount", moved / "snap")
    instance.await_end()
    assert instance.image.read_bytes() == expected(old)


def test_a_cut_and_its_map_after_a_rename(ground: Ground) -> None:
    image = ground.image(16 * MIB)
    run("mkfs.ext4", "-q", "-F", image)
    instance = ground.mounted(image, name="before")
    moved = (ground.path / "before").rename(ground.path / "after")
    done = snapfs("snapshot", moved / "live")
    assert done.returncode == 0, done.stderr
    instance.live, instance.snap = moved / "live", moved / "snap"
    wait_until(lambda: instance.status()["snapshot"]["map"] == "ready")
    assert instance.status()["snap"] == str(moved / "snap")


def test_the_parent_of_image_and_store_renamed(ground: Ground) -> None:
    old = content(MIB)
    (ground.path / "before").mkdir()
    instance = ground.mounted(ground.image(old, "before/disk.img"))
    instance.expect_log("the store cannot be written|the map of used blocks failed")
    moved = (ground.path / "before").rename(ground.path / "after")
    write(instance.live_file)
    assert instance.status()["image"] == str(moved / "disk.img")
    done = snapfs("umount", instance.live)
    assert done.returncode == 0, done.stderr
    instance.await_end()
    assert (moved / "disk.img").read_bytes() == expected(old)
    assert os.listdir(moved) == ["disk.img"]


def test_a_covered_view_is_named_and_not_taken_for_another(ground: Ground) -> None:
    old = content(MIB)
    instance = ground.mounted(ground.image(old))
    write(instance.live_file)
    run("mount", "-t", "tmpfs", "none", instance.live)
    done = snapfs("umount", instance.snap)
    assert done.returncode == 1
    assert "mounted" in done.stderr
    assert str(instance.live) in done.stderr
    assert mount_points_below(ground.path).count(instance.live) == 2
    run("umount", instance.live)
    instance.umount()
    assert instance.image.read_bytes() == expected(old)


def test_sigterm_with_a_covered_view_loses_nothing(ground: Ground) -> None:
    old = content(MIB)
    instance = ground.mounted(ground.image(old))
    instance.expect_log("still in use")
    write(instance.live_file)
    run("mount", "-t", "tmpfs", "none", instance.live)
    instance.processes["supervisor"].send(signal.SIGTERM)
    for name in SERVERS:
        instance.processes[name].await_end()
    assert instance.image.read_bytes() == expected(old)
    run("umount", instance.live)
    run("umount", "-l", instance.live)


def test_a_view_mounted_elsewhere_too_is_named(ground: Ground) -> None:
    old = content(MIB)
    instance = ground.mounted(ground.image(old))
    (ground.path / "elsewhere").mkdir()
    run("mount", "--bind", instance.live, ground.path / "elsewhere")
    write(ground.path / "elsewhere" / "disk.img")
    done = snapfs("umount", instance.live)
    assert done.returncode == 1
    assert str(ground.path / "elsewhere") in done.stderr
    run("umount", instance.live)
    assert snapfs("umount", ground.path / "elsewhere").returncode == 0
    instance.await_end()
    assert instance.image.read_bytes() == expected(old)


def test_the_same_names_of_another_instance_are_left_alone(ground: Ground) -> None:
    """After a rename another instance has the old paths."""
    old = [content(MIB, version=number) for number in range(2)]
    first = ground.mounted(ground.image(old[0], "first.img"), name="views")
    moved = (ground.path / "views").rename(ground.path / "moved")
    second = ground.mounted(ground.image(old[1], "second.img"), name="views")
    write(moved / "live" / "first.img")
    done = snapfs("umount", first.image)
    assert done.returncode == 0, done.stderr
    for process in first.processes.values():
        process.await_end()
    assert first.image.read_bytes() == expected(old[0])
    assert second.live_file.read_bytes() == old[1]
    assert set(mount_points_below(ground.path)) == {second.live, second.snap}


def test_a_copy_in_another_namespace_loses_nothing(ground: Ground) -> None:
    old = content(MIB)
    instance = ground.mounted(ground.image(old))
    instance.expect_log("ending on signal")
    with subprocess.Popen(["unshare", "-m", "--propagation", "private", "sleep", "100"]) as keeper:
        try:
            wait_until(lambda: os.readlink(f"/proc/{keeper.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"))
            write(instance.live_file)
            instance.umount()
        finally:
            keeper.kill()
    assert instance.image.read_bytes() == expected(old)


def test_what_could_not_be_stored_is_no_success(ground: Ground) -> None:
    """The kernel had taken the write, and nobody has synced it."""
    old = os.urandom(4 * MIB)
    instance = ground.mounted(ground.image(old), "--on-overflow=break-write", "--buffer-limit=64K")
    instance.expect_log("of its limit|write of the image failed")
    with suppress(OSError), instance.live_file.open("r+b") as file:
        file.write(os.urandom(2 * MIB))
    done = snapfs("umount", instance.live)
    assert done.returncode == 4, done.stderr
    assert "No space left" in done.stderr
    instance.await_end()
