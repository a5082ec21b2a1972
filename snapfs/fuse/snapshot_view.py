"""The snapshot view: the image as it was at the cut, read-only whatever is asked of it.

Each cut has an inode of its own, so the kernel cannot mix what it cached of two cuts, and a file that was
opened before a new cut fails with ESTALE from then on.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import stat
from collections.abc import Callable
from typing import cast

import pyfuse3
import trio

from cow import Damaged, Header, Image, SnapshotEnded, SnapshotReader, Store
from snapfs.fuse.errnos import fuse_error
from snapfs.fuse.permissions import Permission, Permissions
from snapfs.fuse.view import IMAGE_INODE, LASTING_S, MAX_REQUEST_BYTES, View, wants_write

_LOG = logging.getLogger(__name__)
_READERS = 4
# How long `ls` may still show a permission that was taken away.
_ATTRIBUTES_LAST_S = 1.0
# What free blocks read as, shared by all answers.
_ZEROS = memoryview(bytes(MAX_REQUEST_BYTES))
# A file handle is the inode that was opened, with this bit when its reads do not count.
_UNCOUNTED = 1 << 62


class _Shown:
    """One cut as the view shows it. A reader serves one thread: one for the event loop, one for each that waits."""

    def __init__(self, store: Store, image: Image) -> None:
        self.store, self._image = store, image
        self.inode = pyfuse3.InodeT(IMAGE_INODE + store.header.cut.generation)
        self.reader = SnapshotReader(store, image)
        self._idle: list[SnapshotReader] = []
        self._is_closed = False

    def read(self, offset: int, length: int) -> memoryview:
        """In a thread that may wait. SnapshotEnded: the cut is not shown any more."""
        with self.store.cut.held():
            reader = self._idle.pop() if self._idle else SnapshotReader(self.store, self._image)
            try:
                buffer = memoryview(bytearray(length))
                reader.read_into(buffer, offset)
                return buffer
            finally:
                self._idle.append(reader)
                if self._is_closed:
                    self._close_idle()

    def close(self) -> None:
        """It is shown no more; whoever still reads it in a thread is the last to let go."""
        self._is_closed = True
        self.reader.close()
        self._close_idle()
        self.store.cut.let_go()

    def _close_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()


class SnapshotView(View):
    """FUSE operations over SnapshotReaders; ``on_damage`` is told of what cannot be read: the generation of the
    cut, and a sentence."""

    refusal = errno.EROFS

    def __init__(
        self,
        store: Store,
        image: Image,
        permissions: Permissions,
        name: bytes,
        store_name: Callable[[], bytes],
        on_damage: Callable[[int, str], None],
    ) -> None:
        super().__init__(name, store_name, permissions, store.header.image_bytes, store.header.block_bytes)
        self._image, self._on_damage = image, on_damage
        # Called with offset and length for every read that succeeded, and for every close.
        self.on_read: Callable[[int, int], None] = lambda offset, length: None
        self.on_close: Callable[[], None] = lambda: None
        # None: nobody counts who reads what. Else it says whether a process is one of ours, whose reads do not count.
        self.is_ours: Callable[[int], bool] | None = None
        self._readers = trio.CapacityLimiter(_READERS)
        self._shown = _Shown(store, image)
        self.image_inode = self._shown.inode

    def show(self, store: Store) -> pyfuse3.InodeT:
        """Show the cut that ``store`` is open on from now on, and let go of the one before. Returns the inode that
        this is."""
        before, self._shown = self._shown, _Shown(store, self._image)
        before.close()
        self.image_inode = self._shown.inode
        return self.image_inode

    def trim(self) -> None:
        """Give back the resident memory of the mappings."""
        self._shown.reader.trim()

    @property
    def header(self) -> Header:
        """The header of the cut that is shown."""
        return self._shown.store.header

    def permission(self) -> Permission:
        cut = self.header.cut
        return self._permissions.of_snapshot(Permission(cut.image_mode, cut.image_uid, cut.image_gid))

    def image_attributes(self) -> pyfuse3.EntryAttributes:
        header, permission = self.header, self.permission()
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = self.image_inode
        entry.st_mode = stat.S_IFREG | permission.mode
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = permission.uid, permission.gid
        entry.st_size = header.image_bytes
        entry.st_blksize = header.block_bytes
        entry.st_blocks = -(-header.image_bytes // 512)
        entry.st_atime_ns, entry.st_mtime_ns = header.cut.image_atime_ns, header.cut.image_mtime_ns
        entry.st_ctime_ns = header.cut.taken_at_ns
        entry.attr_timeout, entry.entry_timeout = _ATTRIBUTES_LAST_S, LASTING_S
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
        self._check_open(flags, ctx)
        if self.is_ours is None:
            return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=True)
        if self.is_ours(ctx.pid):
            # Past the cache: what it holds is not asked for again, and would seem never to have been read.
            return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode | _UNCOUNTED), direct_io=True)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode))

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        raise self._refused()

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """There is never anything to write."""

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        if fh == self.image_inode:
            self.on_close()

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        size = min(size, self._image_bytes - off)
        if size <= 0:
            return b""
        shown = self._shown
        try:
            if fh & ~_UNCOUNTED != shown.inode:
                raise SnapshotEnded("the file was opened before the present cut")
            view = await self._read(shown, off, size)
            if not fh & _UNCOUNTED:
                self.on_read(off, size)
            # pyfuse3 takes any buffer, and sends it before the next request can use the scratch memory.
            return cast(bytes, view)
        except Exception as error:
            if isinstance(error, Damaged):
                self._on_damage(shown.store.header.cut.generation, str(error))
            raise fuse_error(error) from error

    async def _read(self, shown: _Shown, offset: int, length: int) -> memoryview:
        if length <= len(_ZEROS) and shown.reader.reads_as_zeros(offset, length):
            return _ZEROS[:length]
        view = self._scratch[:length] if length <= len(self._scratch) else memoryview(bytearray(length))
        if shown.reader.try_read(view, offset):
            return view
        return await trio.to_thread.run_sync(shown.read, offset, length, limiter=self._readers)
