"""What both views have in common: one directory, one file named as the image, and nothing else.

A hidden name in the directory, a symbolic link that is never listed, leads from a view to its store: the other
commands find the instance by it, also when the store lies elsewhere.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Sequence
from typing import Final

import pyfuse3

from snapfs.fuse.access import allows, wanted_by
from snapfs.serving.permissions import Permission
from snapfs.serving.served import Attributes, Served
from snapfs.system.stores import LINK_NAME

_LINK_INODE: Final = pyfuse3.InodeT(2)
# The inode of the image in the live view; the snapshot view has another one for each cut, from here on.
IMAGE_INODE: Final = pyfuse3.InodeT(3)
# Where there is no file: no inode that the kernel asks for.
NO_INODE: Final = pyfuse3.InodeT(0)
# The directory never changes; the file's attributes are told to the kernel when they do.
LASTING_S: Final = 3600.0


class View(Served, pyfuse3.Operations):
    """Names, attributes and refusals; reading and writing are those of what is served.

    A view is made of two: `Served.__init__` (or that of its kind) and this `__init__`.
    """

    failure = pyfuse3.FUSEError
    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False
    # What changing the view's directory or names fails with.
    refusal = errno.EPERM
    image_inode = IMAGE_INODE
    # How long the kernel may take the attributes of the file for what they are.
    attributes_last_s = LASTING_S

    def __init__(self, name: bytes, store: Callable[[], bytes]) -> None:
        """`store` says where the store is now: a directory above it may be renamed meanwhile."""
        pyfuse3.Operations.__init__(self)
        self._name, self._store = name, store
        # What the kernel takes for the permission of the file.
        self._told: Permission | None = None

    def _told_attributes(self) -> pyfuse3.EntryAttributes:
        """The attributes of the view's file, for an answer to the kernel."""
        attributes = self.attributes()
        self._told = attributes.permission
        return self._file_attributes(attributes, self.image_inode)

    def _file_attributes(self, attributes: Attributes, inode: pyfuse3.InodeT) -> pyfuse3.EntryAttributes:
        permission = attributes.permission
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFREG | permission.mode
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = permission.uid, permission.gid
        entry.st_size = self.image_bytes
        entry.st_blksize = self.block_bytes
        entry.st_blocks = attributes.sectors
        entry.st_atime_ns, entry.st_mtime_ns = attributes.accessed_ns, attributes.modified_ns
        entry.st_ctime_ns = attributes.changed_ns
        entry.attr_timeout, entry.entry_timeout = self.attributes_last_s, LASTING_S
        return entry

    def _check_open(self, flags: int, ctx: pyfuse3.RequestContext) -> None:
        """The kernel has let `ctx` open the file: by what is so no longer, perhaps."""
        now = self.permission()
        if now != self._told and not allows(now, ctx, wanted_by(flags)):
            raise pyfuse3.FUSEError(errno.EACCES)

    def _check_owner(self, ctx: pyfuse3.RequestContext) -> None:
        """The same of what only its owner may do."""
        now = self.permission()
        if now != self._told and ctx.uid not in (0, now.uid):
            raise pyfuse3.FUSEError(errno.EPERM)

    def _directory_attributes(self) -> pyfuse3.EntryAttributes:
        image = self.attributes()
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.ROOT_INODE
        entry.st_mode = stat.S_IFDIR | 0o555
        entry.st_nlink = 2
        entry.st_uid, entry.st_gid = image.permission.uid, image.permission.gid
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = image.modified_ns
        entry.attr_timeout = entry.entry_timeout = LASTING_S
        return entry

    def _link_attributes(self) -> pyfuse3.EntryAttributes:
        entry = self._directory_attributes()
        entry.st_ino = _LINK_INODE
        entry.st_mode = stat.S_IFLNK | 0o777
        entry.st_nlink = 1
        entry.st_size = len(self._store())
        entry.attr_timeout = 0
        return entry

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        if inode == self.image_inode:
            return self._told_attributes()
        if inode == pyfuse3.ROOT_INODE:
            return self._directory_attributes()
        if inode == _LINK_INODE:
            return self._link_attributes()
        raise pyfuse3.FUSEError(errno.ESTALE)

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        return self._attributes(inode)

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if parent_inode == pyfuse3.ROOT_INODE:
            if name == self._name and self.image_inode != NO_INODE:
                return self._told_attributes()
            if name == LINK_NAME:
                return self._link_attributes()
            if name in (b".", b".."):
                return self._directory_attributes()
        raise pyfuse3.FUSEError(errno.ENOENT)

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """Inodes are fixed: there is nothing to forget."""

    async def readlink(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> bytes:
        if inode != _LINK_INODE:
            raise pyfuse3.FUSEError(errno.EINVAL)
        return self._store()

    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if start_id == 0 and self.image_inode != NO_INODE:
            pyfuse3.readdir_reply(token, self._name, self._told_attributes(), 1)

    async def releasedir(self, fh: pyfuse3.FileHandleT) -> None:
        """Nothing was opened."""

    async def fsyncdir(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """The directory never changes."""

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = self.block_bytes
        data.f_blocks = -(-self.image_bytes // self.block_bytes)
        data.f_bfree = data.f_bavail = 0
        data.f_files, data.f_ffree, data.f_favail = 1, 0, 0
        data.f_namemax = 255
        return data

    async def access(self, inode: pyfuse3.InodeT, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return True

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Closing a descriptor promises nothing; fsync does."""

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """Handles hold nothing."""

    async def lseek(self, fh: int, off: int, whence: int) -> int:
        """pyfuse3 has it not: see `more_operations`."""
        raise pyfuse3.FUSEError(errno.EINVAL)

    async def fallocate(self, fh: int, mode: int, off: int, length: int) -> None:
        """The same."""
        raise pyfuse3.FUSEError(errno.EOPNOTSUPP)

    def _refused(self) -> pyfuse3.FUSEError:
        return pyfuse3.FUSEError(self.refusal)

    async def create(
        self, parent_inode: pyfuse3.InodeT, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        raise self._refused()

    async def mknod(
        self, parent_inode: pyfuse3.InodeT, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        raise self._refused()

    async def mkdir(
        self, parent_inode: pyfuse3.InodeT, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        raise self._refused()

    async def symlink(
        self, parent_inode: pyfuse3.InodeT, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        raise self._refused()

    async def link(
        self,
        inode: pyfuse3.InodeT,
        new_parent_inode: pyfuse3.InodeT,
        new_name: bytes,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        raise self._refused()

    async def unlink(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        raise self._refused()

    async def rmdir(self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        raise self._refused()

    async def rename(
        self,
        parent_inode_old: pyfuse3.InodeT,
        name_old: bytes,
        parent_inode_new: pyfuse3.InodeT,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        raise self._refused()
