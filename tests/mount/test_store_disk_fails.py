"""The filesystem of the store gives up while it is in use: live data is whole, the snapshot is an error or right."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

import pytest
from ground import Ground
from mounted import Mounted, run, snapfs

BLOCK_BYTES = 64 << 10
OLD, NEW = os.urandom(8 << 20), os.urandom(8 << 20)
# FS_IOC_SHUTDOWN and its flag NOLOGFLUSH, which ext4 and XFS share: from then on each answers with EIO.
SHUT_DOWN, NO_LOG_FLUSH = 0x8004587D, 2


def shut_down(point: Path) -> None:
    fd = os.open(point, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, SHUT_DOWN, struct.pack("I", NO_LOG_FLUSH))
    finally:
        os.close(fd)


def write(view: Mounted, data: bytes) -> None:
    with view.live_file.open("r+b", buffering=0) as file:
        file.write(data)
        os.fsync(file.fileno())


def check_lost(view: Mounted) -> None:
    """No block of the snapshot can be read."""
    fd = os.open(view.snap_file, os.O_RDONLY)
    try:
        for at in range(0, len(OLD), BLOCK_BYTES):
            with pytest.raises(OSError, match="Input/output"):
                os.pread(fd, BLOCK_BYTES, at)
    finally:
        os.close(fd)


def on_disk(ground: Ground, kind: str) -> tuple[Path, Mounted]:
    """A filesystem, and an instance with its store on it, of which everything is on the disk."""
    device = ground.image(400 << 20, "store.fs")
    run(f"mkfs.{kind}", "-q", device)
    point = ground.mount(device, "-o", "loop", name="other")
    view = ground.mounted(ground.image(OLD), "--protect", "all", "--store", point / "store")
    view.expect_log("Input/output error|cut short|could not be|started again|cannot be written|cannot be asked")
    write(view, NEW[: 1 << 20])
    run("sync", "--file-system", point)
    return point, view


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_no_new_data_are_taken_for_the_snapshot(ground: Ground, kind: str) -> None:
    """The pages of the maps are clean and readable, only what is stored into them from now on fails."""
    point, view = on_disk(ground, kind)
    shut_down(point)
    write(view, NEW)
    check_lost(view)
    assert snapfs("umount", view.live).returncode == 4
    view.await_end()


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_what_a_disk_that_comes_back_shows_is_not_believed(ground: Ground, kind: str) -> None:
    point, view = on_disk(ground, kind)
    shut_down(point)
    write(view, NEW)
    assert snapfs("umount", view.live).returncode == 4
    view.await_end()
    view.drop_logs()
    run("umount", point)
    ground.mount(ground.path / "store.fs", "-o", "loop", name="other")
    done = view.mount()
    assert "store's disk failed while it was in use" in done.stdout + done.stderr
    assert view.snap_file.read_bytes() == NEW
    view.umount()
    view.drop_logs()


@pytest.mark.alone  # it asks about all instances
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_both_views_go_on_and_can_be_unmounted(ground: Ground, kind: str) -> None:
    point, view = on_disk(ground, kind)
    with view.live_file.open("r+b", buffering=0) as file:
        shut_down(point)
        for at in range(1 << 19, len(NEW), BLOCK_BYTES):
            os.pwrite(file.fileno(), NEW[at : at + BLOCK_BYTES], at)
        os.fsync(file.fileno())
    check_lost(view)
    assert view.live_file.read_bytes() == NEW
    asked = snapfs("status")
    # A store on ext4 still leads to its server's socket; on XFS nothing of it can be opened any more.
    assert asked.returncode == {"ext4": 3, "xfs": 4}[kind], asked.stderr
    assert str(view.image) in asked.stdout + asked.stderr
    done = snapfs("umount", view.live)
    assert done.returncode == 4
    assert done.stderr == (
        f"snapfs: {view.live} is unmounted and the other view follows, but the store {view.store} failed "
        "(Input/output error) while it was in use; wait for the end of the snapfs processes before you "
        "use the image.\n"
    )
    view.await_end()
    assert view.image.read_bytes() == NEW
