"""The raw file itself, without FUSE and without a snapshot.

The limit for what ends in an fsync. Its direct requests go to the disk, whereas every server here answers them from
its page cache, so there it may well be slower than they are.
"""

from __future__ import annotations

from bench.image import restore
from bench.peers.base import Peer
from bench.rows import RAW


class Raw(Peer):
    name = RAW

    def start(self) -> None:
        restore(self.master, self.image)

    def stop(self) -> None:
        pass
