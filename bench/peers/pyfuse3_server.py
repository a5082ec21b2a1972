"""pyfuse3_server FILE MOUNTPOINT: one directory with one file, every request handed on to FILE.

It receives requests as snapfs does, so the difference between the two is what snapfs itself adds.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

import pyfuse3
import trio

from snapfs.fuse.receive import hurry_receive

FILE_INODE = pyfuse3.InodeT(2)
FILE_HANDLE = pyfuse3.FileHandleT(1)
CACHE_SECONDS = 3600


class Passthrough(pyfuse3.Operations):
    enable_writeback_cache = False

    def __init__(self, path: str) -> None:
        super().__init__()
        self.fd = os.open(path, os.O_RDWR)
        self.name = os.fsencode(os.path.basename(path))

    def attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        stat = os.fstat(self.fd)
        entry.st_ino = pyfuse3.InodeT(inode)
        entry.entry_timeout = entry.attr_timeout = CACHE_SECONDS
        entry.st_mode = pyfuse3.ModeT(stat.st_mode)
        entry.st_size = stat.st_size
        if inode == pyfuse3.ROOT_INODE:
            entry.st_mode = pyfuse3.ModeT(0o40755)
            entry.st_size = 0
        return entry

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name != self.name:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self.attributes(FILE_INODE)

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self.attributes(inode)

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=FILE_HANDLE)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        return os.pread(self.fd, size, off)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        return os.pwrite(self.fd, buf, off)

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        os.fsync(self.fd)


async def serve() -> None:
    """Until it is unmounted or told to stop."""
    hurry_receive(session_fd())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_on_signal)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


def session_fd() -> int:
    """The descriptor that pyfuse3 has open on /dev/fuse."""
    for name in os.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        if os.path.islink(path) and os.readlink(path) == "/dev/fuse":
            return int(name)
    raise RuntimeError("pyfuse3 has nothing open on /dev/fuse")


async def stop_on_signal() -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            pyfuse3.terminate()


def main() -> None:
    path, mountpoint = sys.argv[1:]
    pyfuse3.init(Passthrough(path), mountpoint, {"fsname=passthrough", "default_permissions"})
    try:
        trio.run(serve)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
