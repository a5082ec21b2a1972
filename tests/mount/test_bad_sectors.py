"""An image with a sector that cannot be read (QEMU makes one): the live view goes on, the snapshot loses a block."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from ground import Ground
from mounted import wait_until

BLOCK_BYTES = 4096
OLD = os.urandom(2 << 20)
NEW = os.urandom(1 << 20)
BAD = 100


@pytest.fixture
def bad_image(ground: Ground) -> Iterator[Path]:
    """The image as a disk would show it: one sector of block BAD gives an error, until the end of the test."""
    base, image = ground.image(OLD, "base.img"), ground.image(b"")
    faults = f"inject-error.0.event=none,inject-error.0.iotype=read,inject-error.0.errno={errno.EIO}"
    drive = f"blkdebug,node-name=disk,image=base,{faults},inject-error.0.sector={BAD * BLOCK_BYTES // 512 + 3}"
    words = ["qemu-storage-daemon", "--blockdev", f"file,node-name=base,filename={base}", "--blockdev", drive]
    export = f"fuse,id=e,node-name=disk,mountpoint={image},writable=on,growable=off"
    with subprocess.Popen([*words, "--export", export]) as daemon:
        try:
            wait_until(lambda: os.stat(image).st_size == len(OLD))
            yield image
        finally:
            daemon.terminate()


def blocks_of(path: Path) -> dict[int, bytes | int]:
    """What each block reads as: its bytes or an errno."""
    found: dict[int, bytes | int] = {}
    fd = os.open(path, os.O_RDONLY)
    try:
        for block_no in range(len(OLD) // BLOCK_BYTES):
            try:
                found[block_no] = os.pread(fd, BLOCK_BYTES, block_no * BLOCK_BYTES)
            except OSError as error:
                found[block_no] = error.errno or -1
    finally:
        os.close(fd)
    return found


def write_new(path: Path) -> None:
    """One large write that reaches the server."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.pwrite(fd, NEW, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def test_a_write_over_a_bad_sector_loses_one_block_of_the_snapshot(ground: Ground, bad_image: Path) -> None:
    view = ground.mounted(bad_image, "--protect", "all")
    view.expect_log("4096 bytes at 409600 of the image cannot be read .* lost to the snapshot")
    write_new(view.live_file)
    snapshot = view.status()["snapshot"]
    assert (snapshot["state"], snapshot["lost_blocks"]) == ("damaged", 1)
    expected = {no: OLD[no * BLOCK_BYTES :][:BLOCK_BYTES] for no in range(len(OLD) // BLOCK_BYTES)}
    assert blocks_of(view.snap_file) == expected | {BAD: errno.EIO}
    view.umount()
    assert (bad_image.parent / "base.img").read_bytes() == NEW + OLD[len(NEW) :]


def test_break_write_refuses_what_would_lose_a_block(ground: Ground, bad_image: Path) -> None:
    options = ("--on-overflow", "break-write", "--protect", "all", "--cache", "writethrough")
    view = ground.mounted(bad_image, *options)
    view.expect_log("write of the image failed")
    with pytest.raises(OSError, match="Input/output"):
        write_new(view.live_file)
    snapshot = view.status()["snapshot"]
    assert (snapshot["state"], snapshot["lost_blocks"]) == ("active", 0)
    view.umount()
    assert (bad_image.parent / "base.img").read_bytes() == OLD
