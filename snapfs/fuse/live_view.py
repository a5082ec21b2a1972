"""The live view: the image as it is, writable; every write goes through the engine.

The file has the image's fixed size. A request that needs no wait is answered inside the event loop; only one
that would wait gets a thread. Reads, writes and syncs have threads of their own kind, so that writes which
wait for room never keep a read or the control socket waiting.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable
from typing import cast

import pyfuse3
import trio

from cow import Image, LiveEngine
from snapfs.fuse.errnos import fuse_error
from snapfs.fuse.permissions import Permission, Permissions
from snapfs.fuse.view import IMAGE_INODE, LASTING_S, View, wants_write

_LOG = logging.getLogger(__name__)
_READERS, _WRITERS, _SYNCERS = 8, 16, 4
_READING, _WRITING = pyfuse3.FileHandleT(1), pyfuse3.FileHandleT(2)
# Long: while writes go on the kernel takes no answer for the newest, and asks again with each of them.
_ATTRIBUTES_LAST_S = 60.0
_WRITE_BACK_NS = 2_000_000_000


class LiveView(View):
    """FUSE operations over a LiveEngine."""

    def __init__(
        self,
        engine: LiveEngine,
        image: Image,
        permissions: Permissions,
        name: bytes,
        store: Callable[[], bytes],
        *,
        writeback: bool,
    ) -> None:
        super().__init__(name, store, permissions, engine.geometry.image_bytes, engine.geometry.block_bytes)
        self.enable_writeback_cache = writeback
        self._engine, self._image = engine, image
        info = os.fstat(image.fd)
        # Of a block device's view, (accessed, changed): setting them must not change the device node.
        self._device_times_ns = (info.st_atime_ns, info.st_mtime_ns) if permissions.is_device else None
        # Descriptors of whoever may write. The kernel tells of the end of one when its last copy and mapping is gone.
        self.open_for_writing = 0
        self._readers = trio.CapacityLimiter(_READERS)
        self._writers = trio.CapacityLimiter(_WRITERS)
        self._syncers = trio.CapacityLimiter(_SYNCERS)

    # --- attributes ------------------------------------------------------------------------------------------

    def image_attributes(self) -> pyfuse3.EntryAttributes:
        info = os.fstat(self._image.fd)
        atime_ns, mtime_ns = self._device_times_ns or (info.st_atime_ns, info.st_mtime_ns)
        permission = self.permission()
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = IMAGE_INODE
        entry.st_mode = stat.S_IFREG | permission.mode
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = permission.uid, permission.gid
        entry.st_size = self._image_bytes
        entry.st_blksize = self._block_bytes
        entry.st_blocks = -(-self._image_bytes // 512) if self._device_times_ns else info.st_blocks
        entry.st_atime_ns, entry.st_mtime_ns = atime_ns, mtime_ns
        entry.st_ctime_ns = mtime_ns if self._device_times_ns else info.st_ctime_ns
        entry.attr_timeout = _ATTRIBUTES_LAST_S
        entry.entry_timeout = LASTING_S
        return entry

    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if inode != IMAGE_INODE or (fields.update_size and attr.st_size != self._image_bytes):
            # A raw image is as long as its disk.
            raise pyfuse3.FUSEError(errno.EPERM)
        if fields.update_mode or fields.update_uid or fields.update_gid:
            self._check_owner(ctx)
        try:
            self._set_attributes(attr, fields)
        except OSError as error:
            raise fuse_error(error) from error
        return self._told_attributes()

    def _set_attributes(self, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> None:
        now = self.image_attributes()
        mode = stat.S_IMODE(attr.st_mode) if fields.update_mode else stat.S_IMODE(now.st_mode)
        uid = attr.st_uid if fields.update_uid else now.st_uid
        gid = attr.st_gid if fields.update_gid else now.st_gid
        atime_ns = attr.st_atime_ns if fields.update_atime else now.st_atime_ns
        mtime_ns = attr.st_mtime_ns if fields.update_mtime else now.st_mtime_ns
        self._permissions.change(Permission(mode, uid, gid))
        if self._device_times_ns:
            self._device_times_ns = atime_ns, mtime_ns
            return
        fd = self._image.fd
        if fields.update_mtime and not fields.update_atime and abs(mtime_ns - now.st_mtime_ns) < _WRITE_BACK_NS:
            # The kernel writing back the time of a write that has reached the image, and with it the image's own
            # time: setting it again would only make the next fsync dearer.
            return
        if fields.update_atime or fields.update_mtime:
            # Before the time is set: a mount after a crash must know that it was us.
            self._engine.note_times(mtime_ns)
            os.utime(fd, ns=(atime_ns, mtime_ns))
            self._engine.note_times(os.fstat(fd).st_mtime_ns)

    # --- data ------------------------------------------------------------------------------------------------

    async def open(self, inode: pyfuse3.InodeT, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        self._check_open(flags, ctx)
        writes = wants_write(flags)
        self.open_for_writing += writes
        # Only this view changes the image, so the kernel's pages of it stay right when it is closed.
        return pyfuse3.FileInfo(fh=_WRITING if writes else _READING, keep_cache=True)

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        self.open_for_writing -= fh == _WRITING

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        size = min(size, self._image_bytes - off)
        if size <= 0:
            return b""
        view = self._scratch[:size] if size <= len(self._scratch) else memoryview(bytearray(size))
        try:
            if self._engine.try_read_into(view, off):
                # pyfuse3 takes any buffer, and sends it before the next request can use the scratch memory.
                return cast(bytes, view)
            return await trio.to_thread.run_sync(self._engine.read, off, size, limiter=self._readers)
        except Exception as error:
            raise self._failure(error, "read") from error

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        try:
            if off + len(buf) <= self._image_bytes and self._engine.try_write(off, buf):
                return len(buf)
            return await self._write_waiting(off, buf)
        except Exception as error:
            raise self._failure(error, "write") from error

    async def _write_waiting(self, off: int, buf: bytes) -> int:
        length = min(len(buf), self._image_bytes - off)
        if length <= 0:
            raise pyfuse3.FUSEError(errno.ENOSPC)
        await trio.to_thread.run_sync(self._engine.write, off, memoryview(buf)[:length], limiter=self._writers)
        return length

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        try:
            if not self._engine.try_sync():
                await trio.to_thread.run_sync(self._engine.sync, limiter=self._syncers)
        except Exception as error:
            raise self._failure(error, "fsync") from error

    def _failure(self, error: Exception, what: str) -> pyfuse3.FUSEError:
        failure = fuse_error(error)
        if failure.errno == errno.EIO:
            _LOG.error("%s of the image failed: %s", what, error)
        return failure
