"""The kernel's own copy on write: the image in a loop-mounted XFS or btrfs, a reflink copy of it as the snapshot."""

from __future__ import annotations

import os
from pathlib import Path

from bench.image import reload, run
from bench.peers.base import Peer, is_mounted, unmount
from bench.rows import BTRFS, XFS

# Room for the image, its snapshot rewritten all over, and the filesystem's own blocks; a sparse file.
ROOM_FACTOR = 4


class Reflink(Peer):
    mkfs: tuple[str, ...] = ()
    used_at_cut_bytes = 0

    def start(self) -> None:
        if not is_mounted(self.mountpoint):
            self.make_filesystem()
        self.live = self.mountpoint / "image.img"
        self.snapshot = self.mountpoint / "snapshot.img"
        # A new copy and not the old one mended: its extents lie in one piece, as those of the other peers do.
        run("cp", "--sparse=always", "--reflink=never", str(self.master.path), str(self.live))
        run("sync", "-f", str(self.live))
        run("cp", "--reflink=always", str(self.live), str(self.snapshot))
        run("sync", "-f", str(self.live))
        reload(self.backing)
        self.used_at_cut_bytes = self.used_bytes()

    def make_filesystem(self) -> None:
        run("truncate", "-s", str(self.master.image_bytes * ROOM_FACTOR), str(self.backing))
        run(*self.mkfs, str(self.backing))
        self.mountpoint.mkdir(exist_ok=True)
        run("mount", "-o", "loop", str(self.backing), str(self.mountpoint))

    def stop(self) -> None:
        if is_mounted(self.mountpoint):
            run("rm", "-f", str(self.mountpoint / "snapshot.img"), str(self.mountpoint / "image.img"))
            run("sync", "-f", str(self.mountpoint))

    def close(self) -> None:
        unmount(self.mountpoint)
        self.backing.unlink(missing_ok=True)

    @property
    def backing(self) -> Path:
        return self.folder / "filesystem.img"

    @property
    def mountpoint(self) -> Path:
        return self.folder / "mnt"

    def side_buffer_bytes(self) -> int:
        """What the filesystem has grown by since the cut."""
        run("sync", "-f", str(self.mountpoint))
        return self.used_bytes() - self.used_at_cut_bytes

    def used_bytes(self) -> int:
        facts = os.statvfs(self.mountpoint)
        return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


class Xfs(Reflink):
    name = XFS
    mkfs = ("mkfs.xfs", "-q", "-f")


class Btrfs(Reflink):
    name = BTRFS
    mkfs = ("mkfs.btrfs", "-q", "-f")
