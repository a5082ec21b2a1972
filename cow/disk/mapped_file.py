"""Sparse files mapped shared: which of their pages may be stored into, and whether they are still whole.

Storing through a mapping into a hole gets SIGBUS when the disk is full. `MappedFile` therefore hands out no range
for writing that was not allocated first: `ensure` raises ENOSPC instead. Where that is not enough (see
filesystems), nothing is stored through the mapping at all: `store` raises ENOSPC then. A file that is cut short
under its mapping ends nobody (see faults): `is_whole` tells.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from cow.disk.files import PAGE_BYTES, Data, Files
from cow.disk.filesystems import Storing, storing_on
from cow.disk.plain import open_plain
from cow.faults import Guard

# Written in one call at most.
_MOST_PAGES = 64
_ZEROS = memoryview(bytes(_MOST_PAGES * PAGE_BYTES))
_ALLOCATED = bytes([1]) * _MOST_PAGES
_seek, _END = os.lseek, os.SEEK_END


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
            raise self._cut_short()
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
            stop = self._allocated.find(b"\1", page, min(end, page + _MOST_PAGES))
            stop = stop if stop >= 0 else min(end, page + _MOST_PAGES)
            for start, count in self._without_data(page, stop):
                # To write behind the end would make the file whole again, with zeros for what it held.
                if not self.has_its_size:
                    raise self._cut_short()
                self._files.pwrite(self.fd, _ZEROS[:count], start)
            self._allocated[page:stop] = _ALLOCATED[: stop - page]
            page = self._allocated.find(b"\0", stop, end)

    def _without_data(self, first: int, end: int) -> list[tuple[int, int]]:
        """The `offset, length` of what of these pages has no space yet. One that holds anything has, by the process
        that this one carries on."""
        start = first * PAGE_BYTES
        length = min(end * PAGE_BYTES, self.size_bytes) - start
        if self._is_new:
            return [(start, length)]
        data = self._files.pread(self.fd, length, start)
        if len(data) < length:
            raise self._cut_short()
        if data.count(0) == length:
            return [(start, length)]
        pages = ((at, data[at : at + PAGE_BYTES]) for at in range(0, length, PAGE_BYTES))
        return [(start + at, len(page)) for at, page in pages if page.count(0) == len(page)]

    def _cut_short(self) -> OSError:
        return OSError(errno.EIO, "the file was cut short", os.fspath(self.path))

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
