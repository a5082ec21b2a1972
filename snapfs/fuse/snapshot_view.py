"""The snapshot view: the image as it was at the cut, read-only.

Each cut has an inode of its own, so the kernel cannot mix what it cached of two cuts.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import pyfuse3

from cow import Image, Store
from snapfs.fuse.access import wants_write
from snapfs.fuse.view import IMAGE_INODE, View
from snapfs.serving.permissions import Permissions
from snapfs.serving.snapshot import UNCOUNTED, SnapshotImage


class SnapshotView(SnapshotImage, View):
    """FUSE operations on a SnapshotImage."""

    refusal = errno.EROFS
    # How long `ls` may still show a permission that was taken away.
    attributes_last_s = 1.0

    def __init__(
        self,
        store: Store,
        image: Image,
        permissions: Permissions,
        name: bytes,
        store_name: Callable[[], bytes],
        on_damage: Callable[[int, str], None],
    ) -> None:
        SnapshotImage.__init__(self, store, image, permissions, on_damage)
        View.__init__(self, name, store_name)
        # None: nobody counts who reads what. Else it says whether a process is one of ours, whose reads do not count.
        self.is_ours: Callable[[int], bool] | None = None
        self.image_inode = _inode_of(store)

    def show(self, store: Store) -> None:
        super().show(store)
        self.image_inode = _inode_of(store)

    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        raise self._refused()

    async def open(self, inode: pyfuse3.InodeT, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if wants_write(flags):
            raise self._refused()
        self._check_open(flags, ctx)
        handle = inode - IMAGE_INODE
        if self.is_ours is None:
            return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle), keep_cache=True)
        if self.is_ours(ctx.pid):
            # Past the cache: what it holds is not asked for again, and would seem never to have been read.
            return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle | UNCOUNTED), direct_io=True)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle))

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        raise self._refused()

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """There is never anything to write."""


def _inode_of(store: Store) -> pyfuse3.InodeT:
    return pyfuse3.InodeT(IMAGE_INODE + store.header.cut.generation)
