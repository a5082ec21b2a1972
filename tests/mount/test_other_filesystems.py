"""Stores on filesystems that can less than most: what cannot be given back stays taken, and nothing fails of it."""

from __future__ import annotations

import os
from pathlib import Path

from ground import Ground
from mounted import run, snapfs

OLD = os.urandom(8 << 20)
NEW = os.urandom(2 << 20)


def write(path: Path, offset: int) -> bytes:
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, NEW, offset)
        os.fsync(fd)
    finally:
        os.close(fd)
    return path.read_bytes()


def ntfs(ground: Ground, *options: str) -> Path:
    """A FUSE filesystem: it punches no holes, and what is removed while it is open keeps a name."""
    place, volume = ground.path / "fs", ground.image(100 << 20, "volume")
    place.mkdir()
    run("mkfs.ntfs", "-qF", volume)
    run("ntfs-3g", *options, volume, place)
    return place


def test_a_store_where_nothing_can_be_given_back(ground: Ground) -> None:
    place = ntfs(ground, "-o", "permissions")
    view = ground.mounted(ground.image(OLD), "--store", place / "store", "--protect", "all")
    assert write(view.live_file, 0) == NEW + OLD[len(NEW) :]
    released = snapfs("release", view.live, "--offset", "0", "--length", "4M")
    assert released.returncode == 0, released.stderr
    for number in range(2):
        cut = view.live_file.read_bytes()
        done = snapfs("snapshot", view.live, "--no-freeze")
        assert done.returncode == 0, done.stderr
        write(view.live_file, (number + 1) << 20)
        assert view.snap_file.read_bytes() == cut
    view.umount()
    view.mount()
    assert view.snap_file.read_bytes() == cut
    view.umount()


def test_a_filesystem_without_permissions_is_refused_before_anything_is_made(ground: Ground) -> None:
    place = ntfs(ground)
    view = ground.instance(ground.image(OLD), "--store", place / "store")
    done = view.try_mount()
    assert done.returncode == 1
    assert "filesystem without permissions" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(place) == []
