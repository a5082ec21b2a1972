"""System calls the engine makes, in one place: whole reads and writes, sparse mapped files, durable renames.

Everything that reaches a disk goes through a `Files` object, so that a test can stop the engine at any
call, fail it, or forget what was not synced.

Storing through a mapping into a hole gets SIGBUS when the disk is full. `MappedFile` therefore hands out no range
for writing that was not allocated first: `ensure` raises ENOSPC instead. Where that is not enough (see
filesystems), nothing is stored through the mapping at all: `store` raises ENOSPC then. A file that is cut short
under its mapping ends nobody (see faults): `is_whole` tells.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cow.disk.filesystems import Storing, storing_on
from cow.disk.plain import open_plain
from cow.faults import Guard

Data = bytes | bytearray | memoryview

PAGE_BYTES = 4096
_ZEROS = bytes(PAGE_BYTES)
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
_ZERO_RANGE_KEEP_SIZE = 0x10 | 0x01
_libc = ctypes.CDLL(None, use_errno=True)
_seek, _END = os.lseek, os.SEEK_END


class Files:
    """The real file layer. Short transfers are completed; an early end of file raises EIO."""

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        """Up to `length` bytes; fewer only at the end of the file."""
        return os.pread(fd, length, offset)

    def read_into(self, fd: int, views: Sequence[memoryview], offset: int) -> None:
        """Fill `views` from `offset` on; EIO if the file ends before they are full."""
        wanted = sum(len(view) for view in views)
        done = os.preadv(fd, views, offset)
        while done < wanted:
            rest = _after(views, done)
            count = os.preadv(fd, rest, offset + done)
            if not count:
                raise OSError(errno.EIO, "the file ends before the data does")
            done += count

    def can_ask(self, fd: int) -> bool:
        """Whether the filesystem can say that a read would wait; tmpfs and some FUSE cannot."""
        try:
            os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
        except OSError as error:
            return error.errno != errno.EOPNOTSUPP
        return True

    def try_read_into(self, fd: int, views: Sequence[memoryview], offset: int) -> bool:
        """`read_into` from the page cache only; False (and no promise what `views` hold) if it would wait."""
        wanted = 0
        for view in views:
            wanted += len(view)
        try:
            return os.preadv(fd, views, offset, os.RWF_NOWAIT) == wanted
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return False

    def pwrite(self, fd: int, data: Data, offset: int) -> None:
        done = os.pwrite(fd, data, offset)
        while done < len(data):
            done += os.pwrite(fd, memoryview(data)[done:], offset + done)

    def end_of(self, fd: int) -> int:
        """The size of the file or device now."""
        return os.lseek(fd, 0, os.SEEK_END)

    def sync_data(self, fd: int) -> None:
        os.fdatasync(fd)

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        os.posix_fallocate(fd, offset, length)

    def punch(self, fd: int, offset: int, length: int) -> None:
        """Give the range back to the filesystem; it reads as zeros afterwards. Of a device the same, if it takes
        blocks back and gives zeros for them."""
        _fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, length)

    def zero(self, fd: int, offset: int, length: int) -> None:
        """Make the range zeros; its room stays taken."""
        _fallocate(fd, _ZERO_RANGE_KEEP_SIZE, offset, length)

    def sync_directory(self, path: Path) -> None:
        """Without this a new name in `path` may be gone after a power loss."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.sync(fd)
        finally:
            os.close(fd)

    def write_whole(self, path: Path, data: bytes, *, mode: int = 0o600, durable: bool = True) -> None:
        """The file holds the old bytes or the new ones, never a mixture: after the death of this process, and
        with `durable` after a power loss as well. For small files, one writer for each `path` at a time.

        It gets the permissions `mode`, whatever the umask. OSError: `path` is as it was, or (when only the
        flush of its directory failed) holds the new bytes; the temporary name is gone.
        """
        self.write_pieces(path, [(0, data)], mode=mode, durable=durable)

    def write_pieces(
        self,
        path: Path,
        pieces: Iterable[tuple[int, Data]],
        *,
        size_bytes: int = 0,
        mode: int = 0o600,
        durable: bool = True,
    ) -> None:
        """The same of a file of `size_bytes` or more that is a hole but for `pieces`, each with its offset."""
        partial = path.with_name(path.name + ".new")
        fd = self._open_new(partial, mode)
        try:
            try:
                if size_bytes:
                    os.ftruncate(fd, size_bytes)
                for offset, data in pieces:
                    self.pwrite(fd, data, offset)
                if durable:
                    self.sync(fd)
            finally:
                os.close(fd)
            os.rename(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial)
            raise
        if durable:
            self.sync_directory(path.parent)

    def _open_new(self, path: Path, mode: int) -> int:
        """A file that did not exist. What is there under its name a killed process left, or somebody who hopes
        that it is written through: it goes."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        fd = os.open(path, flags, mode)
        try:
            os.fchmod(fd, mode)
        except BaseException:
            os.close(fd)
            raise
        return fd


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _after(views: Sequence[memoryview], done: int) -> list[memoryview]:
    """What is left of `views` once their first `done` bytes are filled."""
    rest = []
    for view in views:
        if done >= len(view):
            done -= len(view)
        else:
            rest.append(view[done:])
            done = 0
    return rest


class MappedFile:
    """A sparse file of fixed size, mapped shared; several processes see each other's stores at once.

    `is_written`: what is in `map` may only be looked at, and `store` changes it. `is_ring`: nobody looks at
    what was not reserved, and all of it is reserved before it is used.
    """

    def __init__(
        self,
        path: Path,
        size_bytes: int,
        files: Files,
        *,
        writable: bool,
        create: bool = False,
        is_ring: bool = False,
    ) -> None:
        flags = os.O_RDWR if writable else os.O_RDONLY
        self.fd = -1
        self.path, self.size_bytes, self._files, self._is_new = path, size_bytes, files, create
        self.fd = open_plain(path, flags | (os.O_CREAT | os.O_EXCL if create else 0))
        if create:
            os.ftruncate(self.fd, size_bytes)
        elif not self.has_its_size:
            raise OSError(errno.EIO, "the file was cut short", os.fspath(path))
        self.storing = storing_on(self.fd)
        self.is_written = self.storing is Storing.WRITTEN and writable
        self._has_no_holes = self.storing is Storing.RESERVED and writable and not is_ring
        if self._has_no_holes:
            self._files.allocate(self.fd, 0, size_bytes)
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable and not self.is_written else 0)
        self.map = mmap.mmap(self.fd, size_bytes, mmap.MAP_SHARED, access)
        self._guard = Guard(self.map)
        # Else each touch brings in up to 32 pages around it, which scattered writes never use.
        self.map.madvise(mmap.MADV_RANDOM)
        # One byte a page, in untouched anonymous memory: what was never asked for costs nothing. Private, or the
        # advice to forget it would be no more than that.
        self._allocated = mmap.mmap(-1, -(-size_bytes // PAGE_BYTES), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # A turn at the disk, for those who would wait for it anyway: to write a page's zeros twice might erase what
        # was stored in between.
        self._allocating = threading.Lock()
        # Whether all of it is allocated, by `reserve`.
        self.is_reserved = False

    def ensure(self, offset: int, length: int, *, may_wait: bool = True) -> bool:
        """Make the range safe to store into; OSError: the disk has no room for it, or somebody cut the file short.

        False, unless `may_wait`: somebody else is allocating. Else by writing zeros to the pages that hold nothing: a
        filesystem that allocates late reserves their space at once, which costs it a hundredth of an allocation. Not
        for pages that others may be storing into.
        """
        first, end = offset // PAGE_BYTES, -(-(offset + length) // PAGE_BYTES)
        if self._allocated.find(b"\0", first, end) < 0:
            return True
        if not self._allocating.acquire(blocking=may_wait):
            return False
        try:
            self._write_zeros(first, end)
        finally:
            self._allocating.release()
        return True

    def _write_zeros(self, first: int, end: int) -> None:
        page = self._allocated.find(b"\0", first, end)
        while page >= 0:
            start = page * PAGE_BYTES
            count = min(PAGE_BYTES, self.size_bytes - start)
            # To write behind the end would make the file whole again, with zeros for what it held.
            if not self.has_its_size:
                raise OSError(errno.EIO, "the file was cut short", os.fspath(self.path))
            # A page that holds anything has been allocated before, by the process that this one carries on.
            if self._is_new or not any(self._files.pread(self.fd, count, start)):
                self._files.pwrite(self.fd, _ZEROS[:count], start)
            self._allocated[page] = 1
            page = self._allocated.find(b"\0", page + 1, end)

    def store(self, offset: int, data: Data) -> None:
        """Change what the mapping shows, where that may not be done through it; OSError: the disk refused."""
        self._files.pwrite(self.fd, data, offset)

    @property
    def is_whole(self) -> bool:
        """Whether nobody has cut the file short, its disk still answers, and this process never missed a page."""
        try:
            return not self._guard.has_missed and os.fstat(self.fd).st_size >= self.size_bytes
        except OSError:
            return False

    @property
    def has_its_size(self) -> bool:
        """Whether it is as long as it should be now; as quick as can be."""
        try:
            return _seek(self.fd, 0, _END) >= self.size_bytes
        except OSError:
            return False

    def reserve(self) -> None:
        """Allocate the whole file, whatever it holds: for one that will be used as a whole."""
        if self.is_reserved:
            return
        with self._allocating:
            self._files.allocate(self.fd, 0, self.size_bytes)
            self.is_reserved = True

    def data_ranges(self, offset: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
        """The `offset, length` of everything between `offset` and `stop` (the end) that is not a hole, in
        order."""
        stop = self.size_bytes if stop is None else stop
        while offset < stop:
            try:
                start = os.lseek(self.fd, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            offset = min(os.lseek(self.fd, start, os.SEEK_HOLE), stop)
            if start < offset:
                yield start, offset - start

    @property
    def takes_space(self) -> bool:
        return os.fstat(self.fd).st_blocks > 0

    def empty(self) -> None:
        """All zeros and no space on disk again; OSError: the filesystem cannot do that, and nothing changed."""
        with self._allocating:
            # In one step: a file cut to nothing meanwhile would kill whoever reads it through a mapping.
            self._files.punch(self.fd, 0, self.size_bytes)
            self._forget_allocated()

    def clear(self) -> None:
        """`empty`, by other means where the filesystem cannot."""
        try:
            self.empty()
        except OSError:
            with self._allocating:
                os.ftruncate(self.fd, 0)
                os.ftruncate(self.fd, self.size_bytes)
                self._forget_allocated()

    def _forget_allocated(self) -> None:
        self._allocated.madvise(mmap.MADV_DONTNEED)
        self._is_new, self.is_reserved = True, False
        if self._has_no_holes:
            self._files.allocate(self.fd, 0, self.size_bytes)

    def trim(self) -> None:
        """Unmap the resident pages; they stay in the page cache and come back when touched."""
        self.map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        os.close(self.fd)
        self.fd = -1
        # Views handed out keep the mapping alive until they are gone; closing it under them would raise.
        del self.map

    def __del__(self) -> None:
        # A store that could not be opened as a whole leaves some of its files open.
        if self.fd >= 0:
            os.close(self.fd)
