"""The snapshot view: the image as it was at the cut, read-only, and those of its older cuts that have a name.

    disk.img                      the newest; not there while there is no snapshot
    .snapshots/NAME/disk.img      each that has a name; the directory is not listed, as it would be copied with all
    .chunks/NAME/...              see `chunk_folders`

Each cut has an inode of its own, so the kernel cannot mix what it cached of two cuts.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final

import pyfuse3

from cow import CowError, Image, Store
from snapfs.fuse.access import allows, wanted_by, wants_write
from snapfs.fuse.chunk_folders import ROOT_INODE as CHUNKS_INODE
from snapfs.fuse.chunk_folders import ROOT_NAME as CHUNKS_NAME
from snapfs.fuse.chunk_folders import ChunkFolders
from snapfs.fuse.view import IMAGE_INODE, NO_INODE, View
from snapfs.serving.chunks import Chunks
from snapfs.serving.errnos import errno_of
from snapfs.serving.permissions import Permissions
from snapfs.serving.snapshot import UNCOUNTED, SnapshotImage
from snapfs.system.shown_files import SNAPSHOTS_NAME

_SNAPSHOTS_NAME: Final = os.fsencode(SNAPSHOTS_NAME)
# The directory of all, and from there on that of each; no generation is as high.
_SNAPSHOTS_INODE: Final = 1 << 48


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
        chunk_bytes: int,
    ) -> None:
        SnapshotImage.__init__(self, store, image, permissions, on_damage)
        View.__init__(self, name, store_name)
        # None: nobody counts who reads what. Else it says whether a process is one of ours, whose reads do not count.
        self.is_ours: Callable[[int], bool] | None = None
        self._chunks = ChunkFolders(Chunks(self, chunk_bytes), self.block_bytes, self._folder_attributes)
        self._look()

    def show(self, store: Store) -> None:
        super().show(store)
        self._chunks.show()
        self._look()

    def _look(self) -> None:
        newest = self.newest
        self.image_inode = NO_INODE if newest is None else pyfuse3.InodeT(IMAGE_INODE + newest.generation)

    @property
    def shown_inodes(self) -> list[pyfuse3.InodeT]:
        """Of all that may be opened, the newest too."""
        return [pyfuse3.InodeT(IMAGE_INODE + one.generation) for one in self.header.shown]

    # --- those with a name -----------------------------------------------------------------------------------

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        if inode >= CHUNKS_INODE:
            return self._chunks.attributes(inode)
        if inode == _SNAPSHOTS_INODE:
            return self._folder_attributes(inode)
        if inode > _SNAPSHOTS_INODE:
            self._facts_of(inode - _SNAPSHOTS_INODE)
            return self._folder_attributes(inode)
        if inode > IMAGE_INODE and inode != self.image_inode:
            return self._older_attributes(inode - IMAGE_INODE)
        return super()._attributes(inode)

    def _folder_attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = self._directory_attributes()
        entry.st_ino = pyfuse3.InodeT(inode)
        # They come and go.
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    def _older_attributes(self, generation: int) -> pyfuse3.EntryAttributes:
        inode = pyfuse3.InodeT(IMAGE_INODE + generation)
        entry = self._file_attributes(self.attributes(generation), inode)
        entry.entry_timeout = 0
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if parent_inode >= CHUNKS_INODE:
            return await self._chunks.lookup(parent_inode, name)
        if parent_inode == pyfuse3.ROOT_INODE and name == CHUNKS_NAME:
            return self._attributes(CHUNKS_INODE)
        if parent_inode == pyfuse3.ROOT_INODE and name == _SNAPSHOTS_NAME:
            return self._attributes(_SNAPSHOTS_INODE)
        if parent_inode == _SNAPSHOTS_INODE:
            generation = self.names.get(os.fsdecode(name))
            if generation is not None:
                return self._attributes(_SNAPSHOTS_INODE + generation)
        elif parent_inode > _SNAPSHOTS_INODE and name == self._name:
            return self._older_attributes(parent_inode - _SNAPSHOTS_INODE)
        return await super().lookup(parent_inode, name, ctx)

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if fh >= CHUNKS_INODE:
            self._chunks.readdir(fh, start_id, token)
        elif fh == _SNAPSHOTS_INODE:
            for number, (name, generation) in enumerate(sorted(self.names.items()), 1):
                entry = self._attributes(_SNAPSHOTS_INODE + generation)
                if number > start_id and not pyfuse3.readdir_reply(token, os.fsencode(name), entry, number):
                    return
        elif fh > _SNAPSHOTS_INODE:
            if start_id == 0:
                pyfuse3.readdir_reply(token, self._name, self._older_attributes(fh - _SNAPSHOTS_INODE), 1)
        else:
            await super().readdir(fh, start_id, token)

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
        if inode >= CHUNKS_INODE:
            return self._chunks.open(inode, flags, ctx)
        handle = inode - IMAGE_INODE
        if inode == self.image_inode:
            self._check_open(flags, ctx)
        elif not allows(self.permission(handle), ctx, wanted_by(flags)):
            raise pyfuse3.FUSEError(errno.EACCES)
        try:
            self.begin_reading(handle)
        except (CowError, OSError) as error:
            raise pyfuse3.FUSEError(errno_of(error)) from error
        if self.is_ours is None:
            return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle), keep_cache=True)
        if self.is_ours(ctx.pid):
            # Past the cache: what it holds is not asked for again, and would seem never to have been read.
            return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle | UNCOUNTED), direct_io=True)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(handle))

    async def read_other(self, fh: int, off: int, size: int) -> bytes:
        if self._chunks.has_handle(fh):
            return await self._chunks.read(fh, off, size)
        return await super().read_other(fh, off, size)

    async def lseek(self, fh: int, off: int, whence: int) -> int:
        if self._chunks.has_handle(fh):
            return await self._chunks.lseek(fh, off, whence)
        return await super().lseek(fh, off, whence)

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        if self._chunks.has_handle(fh):
            self._chunks.release(fh)
        else:
            await super().release(fh)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        raise self._refused()

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """There is never anything to write."""
