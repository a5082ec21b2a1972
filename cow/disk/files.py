"""System calls the engine makes, in one place: whole reads and writes, durable renames.

Everything that reaches a disk goes through a `Files` object, so that a test can stop the engine at any
call, fail it, or forget what was not synced.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

Data = bytes | bytearray | memoryview

# Of the page cache; filesystems take room and give it back in as much.
PAGE_BYTES = 4096
_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
_ZERO_RANGE_KEEP_SIZE = 0x10 | 0x01
_libc = ctypes.CDLL(None, use_errno=True)


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
