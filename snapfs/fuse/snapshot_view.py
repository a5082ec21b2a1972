"""The snapshot view: the image as it was at the cut, read-only whatever is asked of it."""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import Callable
from typing import cast

import pyfuse3
import trio

from cow.errors import Damaged
from cow.header import Header
from cow.snapshot import SnapshotReader
from snapfs.fuse.errnos import fuse_error
from snapfs.fuse.view import IMAGE_INODE, LASTING_S, View, wants_write

_LOG = logging.getLogger(__name__)
_READERS = 4


class SnapshotView(View):
    """FUSE operations over SnapshotReaders; ``on_damage`` is told, with a sentence, of what cannot be read."""

    refusal = errno.EROFS

    def __init__(
        self,
        new_reader: Callable[[], SnapshotReader],
        header: Header,
        name: bytes,
        store: bytes,
        on_damage: Callable[[str], None],
    ) -> None:
        super().__init__(name, store, header.image_bytes, header.block_bytes)
        self._header, self._new_reader, self._on_damage = header, new_reader, on_damage
        # A reader serves one thread: one for the event loop, one for each thread that waits.
        self._reader = new_reader()
        self._idle_readers: list[SnapshotReader] = []
        self._readers = trio.CapacityLimiter(_READERS)

    def image_attributes(self) -> pyfuse3.EntryAttributes:
        header = self._header
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = IMAGE_INODE
        entry.st_mode = stat.S_IFREG | (header.image_mode & 0o444)
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = header.image_uid, header.image_gid
        entry.st_size = header.image_bytes
        entry.st_blksize = header.block_bytes
        entry.st_blocks = -(-header.image_bytes // 512)
        entry.st_atime_ns, entry.st_mtime_ns = header.image_atime_ns, header.image_mtime_ns
        entry.st_ctime_ns = header.taken_at_ns
        entry.attr_timeout = entry.entry_timeout = LASTING_S
        return entry

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
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=True)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        raise self._refused()

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """There is never anything to write."""

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        size = min(size, self._image_bytes - off)
        if size <= 0:
            return b""
        view = self._scratch[:size] if size <= len(self._scratch) else memoryview(bytearray(size))
        try:
            if self._reader.try_read(view, off):
                # pyfuse3 takes any buffer, and sends it before the next request can use the scratch memory.
                return cast(bytes, view)
            return await trio.to_thread.run_sync(self._read_waiting, off, size, limiter=self._readers)
        except Exception as error:
            if isinstance(error, Damaged):
                self._on_damage(str(error))
            raise fuse_error(error) from error

    def _read_waiting(self, off: int, size: int) -> bytes:
        reader = self._idle_readers.pop() if self._idle_readers else self._new_reader()
        try:
            buffer = memoryview(bytearray(size))
            reader.read_into(buffer, off)
            return cast(bytes, buffer)
        finally:
            self._idle_readers.append(reader)
