"""The store's filesystem is filled to its last block by somebody else while writes go on: the policy decides, and no
process dies, whether the filesystem writes in place, copies, or is memory."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from ground import Ground
from mounted import Mounted, run

BLOCK_BYTES = 4096
IMAGE_BYTES = 16 << 20
MADE = {"ext4": ("mkfs.ext4", "-qF"), "xfs": ("mkfs.xfs", "-q"), "btrfs": ("mkfs.btrfs", "-q", "-M")}
SIZES = {"ext4": "160M", "xfs": "320M", "btrfs": "200M"}


def small_filesystem(ground: Ground, kind: str) -> Path:
    if kind == "tmpfs":
        return ground.mount(Path("none"), "-t", "tmpfs", "-o", "size=100M")
    backing = ground.path / "fs.img"
    run("truncate", "-s", SIZES[kind], backing)
    run(*MADE[kind], backing)
    # The option would have everything copied and compressed that does not say no.
    return ground.mount(ground.loop(backing), *(("-o", "compress=zstd") if kind == "btrfs" else ()))


def fill(directory: Path) -> None:
    """Leave no room at all, neither for large things nor for small ones."""
    content = os.urandom(8 << 20)
    with (directory / "fill").open("wb", buffering=0) as file:
        for piece in (8 << 20, 256 << 10, 4096):
            with pytest.raises(OSError, match="No space left"):  # noqa: PT012
                while True:
                    file.write(content[:piece])


def write_blocks(view: Mounted, live: bytearray, blocks: list[int]) -> int:
    """Write some blocks, until a few were refused for want of room; how many that were."""
    refused = 0
    fd = os.open(view.live_file, os.O_RDWR)
    try:
        for block_no in blocks:
            if refused == 3:
                break  # btrfs looks long for room before it refuses
            data, at = os.urandom(BLOCK_BYTES), block_no * BLOCK_BYTES
            try:
                os.pwrite(fd, data, at)
                live[at : at + BLOCK_BYTES] = data
            except OSError as error:
                refused += 1
                if error.errno != errno.ENOSPC:
                    raise
    finally:
        os.close(fd)
    return refused


@pytest.mark.parametrize(
    ("kind", "policy"),
    [("btrfs", "break-write"), ("tmpfs", "break-write"), ("xfs", "break-snapshot")],
)
def test_a_store_without_room_kills_nobody(ground: Ground, kind: str, policy: str) -> None:
    place, old = small_filesystem(ground, kind), os.urandom(IMAGE_BYTES)
    options = ("--on-overflow", policy, "--cache", "writethrough", "--protect", "all")
    view = ground.mounted(ground.image(old), "--store", place / "store", *options)
    view.expect_log("No space left on device|could not be written out")
    live, blocks = bytearray(old), random.Random(1).sample(range(IMAGE_BYTES // BLOCK_BYTES), 400)
    assert not write_blocks(view, live, blocks[:100])
    if kind == "btrfs":
        # From here on what the snapshot shares is copied once more, whatever the files say.
        run("btrfs", "subvolume", "snapshot", place, place / "shared")
    fill(place)
    # None of them need fail: what has been allocated is there to be used.
    refused = write_blocks(view, live, blocks[100:300])
    assert view.live_file.read_bytes() == live
    assert all(process.is_running for process in view.processes.values())
    if policy == "break-write":
        assert view.snap_file.read_bytes() == old
        (place / "fill").unlink()
        os.sync()
        assert not write_blocks(view, live, blocks[300:])
        assert view.snap_file.read_bytes() == old
    else:
        assert not refused
    view.umount()
    assert view.image.read_bytes() == live
