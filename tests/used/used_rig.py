"""Snapshots with `--protect used` under test: filesystems on images that held something else before.

An image is full of `STALE` before the filesystem is made on it, as a disk is that was used before. What the
filesystem calls free then differs from zeros, so a free block that is shown, copied or preserved is noticed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitarray import bitarray
from cut_rig import CutGround
from foreign_images import fill
from mounted import Mounted, run, snapfs, wait_until

MIB = 1 << 20
BLOCK_BYTES = 4096
STALE = b"\xa5"

# Without what only takes time, and without discarding: that would make the free blocks zeros.
MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
    "btrfs": ("mkfs.btrfs", "-q", "-f", "-K"),
}
# Nothing is replayed: what is there must do as it is.
READ_ONLY = {"ext4": "ro,noload", "xfs": "ro,norecovery,nouuid", "btrfs": "ro"}


class UsedGround(CutGround):
    """A `CutGround` with images that were used before."""

    def stale(self, size_bytes: int, name: str = "disk.img") -> Path:
        image = self.image(0, name)
        with image.open("wb") as file:
            for start in range(0, size_bytes, MIB):
                file.write(STALE * min(MIB, size_bytes - start))
        return image

    def filled(self, fstype: str, size_bytes: int, name: str = "disk.img") -> Path:
        """An image that is one filesystem with files in it, at rest."""
        image = self.stale(size_bytes, name)
        run(*MKFS[fstype], image)
        with self.opened(image) as point:
            fill(point)
        return image

    @contextmanager
    def opened(
        self, file: Path, *options: str, name: str = "opened", part: tuple[int, int] | None = None
    ) -> Iterator[Path]:
        """The filesystem in a file, or in a part of it (offset, length), mounted through a loop device."""
        place = () if part is None else (f"--offset={part[0]}", f"--sizelimit={part[1]}")
        device = self.loop(file, *place)
        point = self.mount(device, *options, name=name)
        yield point
        run("umount", point)
        self.drop_loop(device)


def await_map(instance: Mounted, state: str = "ready") -> dict[str, Any]:
    """The `snapshot` part of the status, when its map has come to `state`."""
    wait_until(lambda: instance.status()["snapshot"]["map"] == state, what=f"a map that is {state}")
    snapshot: dict[str, Any] = instance.status()["snapshot"]
    return snapshot


def map_of(path: Path, *options: str) -> dict[str, Any]:
    """What `snapfs map --json` says."""
    done = snapfs("map", path, "--json", *options)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def used_blocks(found: dict[str, Any]) -> bitarray:
    """The extents of a map as one bit a block; they cover the image without gaps."""
    used, at = bitarray(endian="little"), 0
    for extent in found["extents"]:
        assert extent["start"] == at
        at += extent["length"]
        used.extend([extent["data"]] * (-(-at // found["block_bytes"]) - len(used)))
    assert at == found["image_bytes"]
    return used


def with_zeros_for_free(content: bytes, used: bitarray) -> bytes:
    """What a snapshot of `content` has to show."""
    shown = bytearray(content)
    for block_no in used.search(bitarray("0")):
        start = block_no * BLOCK_BYTES
        end = min(start + BLOCK_BYTES, len(shown))
        shown[start:end] = bytes(end - start)
    return bytes(shown)
