"""The live view: the image as it is, writable."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

import pyfuse3

from cow import Image, LiveEngine
from snapfs.fuse.access import wants_write
from snapfs.fuse.view import View
from snapfs.serving.errnos import errno_of
from snapfs.serving.live import LiveImage
from snapfs.serving.permissions import Permission, Permissions

_READING, _WRITING = pyfuse3.FileHandleT(1), pyfuse3.FileHandleT(2)


class LiveView(LiveImage, View):
    """FUSE operations on a LiveImage."""

    # Long: while writes go on the kernel takes no answer for the newest, and asks again with each of them.
    attributes_last_s = 60.0

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
        LiveImage.__init__(self, engine, image, permissions)
        View.__init__(self, name, store)
        self.enable_writeback_cache = writeback

    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        if inode != self.image_inode or (fields.update_size and attr.st_size != self.image_bytes):
            # A raw image is as long as its disk.
            raise pyfuse3.FUSEError(errno.EPERM)
        if fields.update_mode or fields.update_uid or fields.update_gid:
            self._check_owner(ctx)
        now = self.permission()
        permission = Permission(
            stat.S_IMODE(attr.st_mode) if fields.update_mode else now.mode,
            attr.st_uid if fields.update_uid else now.uid,
            attr.st_gid if fields.update_gid else now.gid,
        )
        try:
            self.set_attributes(
                permission,
                attr.st_atime_ns if fields.update_atime else None,
                attr.st_mtime_ns if fields.update_mtime else None,
            )
        except OSError as error:
            raise pyfuse3.FUSEError(errno_of(error)) from error
        return self._told_attributes()

    async def open(self, inode: pyfuse3.InodeT, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        self._check_open(flags, ctx)
        if self.is_closed:
            raise pyfuse3.FUSEError(errno.EBUSY)
        writes = wants_write(flags)
        self.opened += 1
        self.open_for_writing += writes
        # Only this view changes the image, so the kernel's pages of it stay right when it is closed.
        return pyfuse3.FileInfo(fh=_WRITING if writes else _READING, keep_cache=True)

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        self.open_for_writing -= fh == _WRITING
        self.opened -= 1
