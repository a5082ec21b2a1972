"""The image as it is, writable; every write goes through the engine.

It has a fixed size. Reads, writes, syncs, discards and what asks for holes have threads of their own kind, so that
writes which wait for room never keep a read or the control socket waiting.
"""

from __future__ import annotations

import errno
import logging
import os
from typing import cast

import trio

from cow import CowError, Image, LiveEngine
from cow.holes import next_data, next_hole
from snapfs.serving.errnos import errno_of
from snapfs.serving.permissions import Permission, Permissions, permission_of
from snapfs.serving.served import Attributes, Served

_LOG = logging.getLogger(__name__)
_READERS, _WRITERS, _SYNCERS, _SEEKERS, _ZEROERS = 8, 16, 4, 4, 4
# Modes of fallocate(2).
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10
_WRITE_BACK_NS = 2_000_000_000


class LiveImage(Served):
    """Requests to a LiveEngine."""

    def __init__(self, engine: LiveEngine, image: Image, permissions: Permissions) -> None:
        Served.__init__(self, permissions, engine.geometry.image_bytes, engine.geometry.block_bytes)
        self._engine, self._image = engine, image
        info = os.fstat(image.fd)
        # Of a block device's view, (accessed, changed): setting them must not change the device node.
        self._device_times_ns = (info.st_atime_ns, info.st_mtime_ns) if permissions.is_device else None
        # Descriptors of whoever may write. A front is told of the end of one when its last copy and mapping is gone.
        self.open_for_writing = 0
        # Of anybody.
        self.opened = 0
        # Nobody new is let in.
        self.is_closed = False
        self._readers = trio.CapacityLimiter(_READERS)
        self._writers = trio.CapacityLimiter(_WRITERS)
        self._syncers = trio.CapacityLimiter(_SYNCERS)
        self._zeroers = trio.CapacityLimiter(_ZEROERS)
        # Whether the image cannot be punched, or zeroed.
        self._cannot_zero = set[bool]()
        self._seekers = trio.CapacityLimiter(_SEEKERS)

    # --- attributes ------------------------------------------------------------------------------------------

    def attributes(self) -> Attributes:
        info = os.fstat(self._image.fd)
        if self._device_times_ns is None:
            # Never none: tar would take it for a file of zeros, whatever the kernel has not handed on yet.
            sectors = max(1, info.st_blocks)
            return Attributes(permission_of(info), sectors, info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns)
        accessed_ns, modified_ns = self._device_times_ns
        return Attributes(self.permission(), -(-self.image_bytes // 512), accessed_ns, modified_ns, modified_ns)

    def set_attributes(self, permission: Permission, accessed_ns: int | None, modified_ns: int | None) -> None:
        """Permission and times, None for one that stays as it is; OSError when the system refuses."""
        self._permissions.change(permission)
        now = self.attributes()
        new_accessed_ns = now.accessed_ns if accessed_ns is None else accessed_ns
        new_modified_ns = now.modified_ns if modified_ns is None else modified_ns
        if self._device_times_ns:
            self._device_times_ns = new_accessed_ns, new_modified_ns
        elif modified_ns is not None and accessed_ns is None and abs(modified_ns - now.modified_ns) < _WRITE_BACK_NS:
            # The kernel writing back the time of a write that has reached the image, and with it the image's own
            # time: setting it again would only make the next fsync dearer.
            return
        elif accessed_ns is not None or modified_ns is not None:
            # Before the time is set: a mount after a crash must know that it was us.
            self._engine.note_times(new_modified_ns)
            os.utime(self._image.fd, ns=(new_accessed_ns, new_modified_ns))
            self._engine.note_times(os.fstat(self._image.fd).st_mtime_ns)

    # --- data ------------------------------------------------------------------------------------------------

    async def read(self, fh: int, off: int, size: int) -> bytes:
        size = min(size, self.image_bytes - off)
        if size <= 0:
            return b""
        view = self._scratch[:size] if size <= len(self._scratch) else memoryview(bytearray(size))
        try:
            if self._engine.try_read_into(view, off):
                return cast(bytes, view)
            return await trio.to_thread.run_sync(self._engine.read, off, size, limiter=self._readers)
        except Exception as error:
            raise self._failed(error, "read") from error

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        try:
            if off + len(buf) <= self.image_bytes and self._engine.try_write(off, buf):
                return len(buf)
            return await self._write_waiting(off, buf)
        except Exception as error:
            raise self._failed(error, "write") from error

    async def _write_waiting(self, offset: int, data: bytes) -> int:
        length = min(len(data), self.image_bytes - offset)
        if length <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await trio.to_thread.run_sync(self._engine.write, offset, memoryview(data)[:length], limiter=self._writers)
        return length

    async def lseek(self, fh: int, off: int, whence: int) -> int:
        for_hole = self.check_seek(off, whence, self.image_bytes)
        if self.open_for_writing:
            # The front may keep back what he has written. To have it handed on, a thread would wait for answers of
            # this very process, and could not even be killed when there are none any more.
            return self.image_bytes if for_hole else off
        try:
            return self.found(await trio.to_thread.run_sync(self._seek, off, for_hole, limiter=self._seekers))
        except (CowError, OSError) as error:
            raise self._failed(error, "lseek") from error

    async def fallocate(self, fh: int, mode: int, off: int, length: int) -> None:
        give_back = mode == _PUNCH_HOLE | _KEEP_SIZE
        if not give_back and mode & ~_KEEP_SIZE != _ZERO_RANGE:
            raise self.failure(errno.EOPNOTSUPP)
        if off + length > self.image_bytes and not mode & _KEEP_SIZE:
            raise self.failure(errno.ENOSPC)
        length = min(length, self.image_bytes - off)
        if length <= 0:
            return
        try:
            await trio.to_thread.run_sync(self._zero, off, length, give_back, limiter=self._zeroers)
        except (CowError, OSError) as error:
            raise self._failed(error, "fallocate") from error

    def _zero(self, offset: int, length: int, give_back: bool) -> None:
        if give_back in self._cannot_zero:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        try:
            self._engine.zero(offset, length, give_back=give_back)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                # Before anything is preserved for it the next time.
                self._cannot_zero.add(give_back)
            raise

    def _seek(self, offset: int, for_hole: bool) -> int | None:
        stop = self.image_bytes
        holes = self._engine.holes(offset, stop)
        return next_hole(holes, offset, stop) if for_hole else next_data(holes, offset, stop)

    async def fsync(self, fh: int, datasync: bool) -> None:
        try:
            if not self._engine.try_sync():
                await trio.to_thread.run_sync(self._engine.sync, limiter=self._syncers)
        except Exception as error:
            raise self._failed(error, "fsync") from error

    def _failed(self, error: Exception, what: str) -> Exception:
        code = errno_of(error)
        if code == errno.EIO:
            _LOG.error("%s of the image failed: %s", what, error)
        return self.failure(code)
