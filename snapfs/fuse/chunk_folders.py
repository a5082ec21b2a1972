"""The part of the snapshot view that shows snapshots as files of some MiB each.

    .chunks/newest/000000M ...    of the newest snapshot
    .chunks/NAME/000000M ...      of each that has a name

The directory is not listed, as it would be copied with all. The inode of a file is of its folder's name and its
place, and stays the same whatever is shown there; that of a folder is of the cut: nothing below it outlives that.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

import pyfuse3

from snapfs.fuse.access import allows, wanted_by
from snapfs.fuse.view import LASTING_S
from snapfs.options import NEWEST_NAME
from snapfs.serving.chunks import Chunks
from snapfs.serving.served import Attributes
from snapfs.system.shown_files import CHUNKS_NAME

ROOT_NAME: Final = os.fsencode(CHUNKS_NAME)
# No other inode of the view is as high. From the third on, the slot of the folder, then the place of the chunk.
ROOT_INODE: Final = 1 << 56
_FOLDERS_INODE: Final = 1 << 57
_FILES_INODE: Final = 1 << 58
# Enough for the smallest chunks of the largest image.
_PLACE_BITS: Final = 24
# How long the kernel may take who may enter a folder for what it is.
_ATTRIBUTES_LAST_S: Final = 1.0
# A handle of a file that is open.
_HANDLE: Final = 1 << 61


class ChunkFolders:
    """Requests for inodes from `ROOT_INODE` on. `folder_attributes`: of a directory of the view, with an inode."""

    def __init__(
        self, chunks: Chunks, block_bytes: int, folder_attributes: Callable[[int], pyfuse3.EntryAttributes]
    ) -> None:
        self._chunks, self._block_bytes, self._folder_attributes = chunks, block_bytes, folder_attributes

    def attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        if inode == ROOT_INODE:
            entry = self._lasting(inode)
            # Always there, and asked for with each path below.
            entry.entry_timeout = LASTING_S
            return entry
        if inode < _FILES_INODE:
            folder, generation = self._folder_at(inode)
            return self._attributes_of(folder, generation)
        folder, number = self._file_at(inode)
        generation = self._generation_of(folder)
        return self._entry(folder, number, self._chunks.attributes(generation, number))

    async def lookup(self, parent_inode: int, name: bytes) -> pyfuse3.EntryAttributes:
        if parent_inode == ROOT_INODE:
            folder = os.fsdecode(name)
            return self._attributes_of(folder, await self._chunks.enter(folder))
        folder, generation = self._folder_at(parent_inode)
        number = self._chunks.names.number(os.fsdecode(name))
        if number is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._entry(folder, number, self._chunks.attributes(generation, number))

    def readdir(self, inode: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if inode == ROOT_INODE:
            for at, (folder, generation) in enumerate(sorted(self._chunks.folders.items()), 1):
                entry = self._attributes_of(folder, generation)
                if at > start_id and not pyfuse3.readdir_reply(token, os.fsencode(folder), entry, at):
                    return
            return
        folder, generation = self._folder_at(inode)
        names, attributes = self._chunks.names, None
        for number in range(start_id, names.count):
            attributes = self._chunks.attributes(generation, number, attributes)
            entry = self._entry(folder, number, attributes)
            if not pyfuse3.readdir_reply(token, os.fsencode(names.name(number)), entry, number + 1):
                return

    def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if inode < _FILES_INODE:
            raise pyfuse3.FUSEError(errno.EISDIR)
        folder, number = self._file_at(inode)
        permission = self._chunks.attributes(self._generation_of(folder), number).permission
        if not allows(permission, ctx, wanted_by(flags)):
            raise pyfuse3.FUSEError(errno.EACCES)
        # Past the kernel's pages: those would be of the inode, and so of whichever snapshot is shown there later.
        handle = pyfuse3.FileHandleT(_HANDLE | self._chunks.open(folder, number))
        return pyfuse3.FileInfo(fh=handle, direct_io=True)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        return await self._chunks.read(fh & ~_HANDLE, offset, size)

    async def lseek(self, fh: int, offset: int, whence: int) -> int:
        return await self._chunks.seek(fh & ~_HANDLE, offset, whence)

    def release(self, fh: int) -> None:
        self._chunks.close(fh & ~_HANDLE)

    @staticmethod
    def has_handle(fh: int) -> bool:
        """Whether that is a file of these."""
        return bool(fh & _HANDLE)

    def show(self) -> None:
        """Other cuts are shown, perhaps."""
        self._chunks.forget()

    # --- inodes ----------------------------------------------------------------------------------------------

    def _folder_at(self, inode: int) -> tuple[str, int]:
        """Its name and the cut that it is of; ESTALE when it shows another."""
        generation, is_newest = divmod(inode - _FOLDERS_INODE, 2)
        for folder, shown in self._chunks.folders.items():
            if shown == generation and (folder == NEWEST_NAME) == bool(is_newest):
                return folder, generation
        raise pyfuse3.FUSEError(errno.ESTALE)

    def _file_at(self, inode: int) -> tuple[str, int]:
        slot, place = divmod(inode - _FILES_INODE, 1 << _PLACE_BITS)
        number = self._chunks.names.at_place(place)
        if number is None:
            raise pyfuse3.FUSEError(errno.ESTALE)
        return self._chunks.folder_of(slot), number

    def _generation_of(self, folder: str) -> int:
        return self._chunks.generation_of(folder)

    def _attributes_of(self, folder: str, generation: int) -> pyfuse3.EntryAttributes:
        return self._lasting(_FOLDERS_INODE + 2 * generation + (folder == NEWEST_NAME))

    def _lasting(self, inode: int) -> pyfuse3.EntryAttributes:
        """With attributes that need not be asked for again for each name below it."""
        entry = self._folder_attributes(inode)
        entry.attr_timeout = _ATTRIBUTES_LAST_S
        return entry

    def _entry(self, folder: str, number: int, attributes: Attributes) -> pyfuse3.EntryAttributes:
        _, length = self._chunks.names.extent(number)
        permission = attributes.permission
        entry = pyfuse3.EntryAttributes()
        slot, place = self._chunks.slot(folder), self._chunks.names.place(number)
        entry.st_ino = pyfuse3.InodeT(_FILES_INODE + (slot << _PLACE_BITS) + place)
        entry.st_mode = stat.S_IFREG | permission.mode
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = permission.uid, permission.gid
        entry.st_size, entry.st_blksize = length, self._block_bytes
        entry.st_blocks = attributes.sectors
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = attributes.changed_ns
        # The name is of that file for ever, but what the file shows may be another snapshot any time.
        entry.attr_timeout, entry.entry_timeout = 0, LASTING_S
        return entry
