"""Where a backup or a restored image is written: a file, a block device, a stream.

Rules
- Which file that is, and that nobody else has it, is the business of `snapfs.destination`.
- Large writes go past the page cache where the filesystem lets them: nobody reads the backup soon, its pages
  would push out of memory what the machine needs, and syncing then takes no time.
- Small ones go through it, or each would wait for the disk: a large image has thousands of small metadata extents.
- Cells that hold zeros become holes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Any, Final, Protocol

from snapfs.destination.write_errors import vanished, write_errors
from snapfs.errors import ReaderGoneError, SnapfsError
from snapfs.imager.sparse import data_runs, make_zeros
from snapfs.system.descriptors import path_of
from snapfs.whole import put_whole, read_whole, write_whole

_ALIGNMENT: Final = 4096
# From here on writing itself takes longer than getting to the disk and back.
_LARGE_BYTES: Final = 1 << 20
_ZEROS: Final = bytes(1 << 20)


class Target(Protocol):
    """Takes the content of an image. Every method raises SnapfsError with the reason."""

    name: str
    is_durable: bool  # whether `sync` means anything

    def write(self, view: memoryview, offset: int) -> None: ...

    def write_zeros(self, offset: int, length: int) -> None:
        """Used space that is known to be zeros, or free space."""

    def sync(self) -> None:
        """All that was written is on the disk, and will be found there, when this returns."""

    def finish(self) -> None:
        """Everything was written."""

    def close(self) -> None: ...


class FileTarget:
    """A file, or a block device, open for writing. `holds_zeros`: what is not written reads as zeros already."""

    is_durable = True

    def __init__(self, fd: int, path: Path, size_bytes: int, *, is_new: bool, way_out: str, name: str = "") -> None:
        """`fd` is the file at `path` and stays the caller's; a file gets its size, one that `is_new` is empty."""
        self.path, self.name, self._way_out = path, name or str(path), way_out
        self.fd = fd
        # A device has what it has.
        self._file_bytes = None if stat.S_ISBLK(os.fstat(fd).st_mode) else size_bytes
        with write_errors(self.name, way_out):
            if self._file_bytes is not None:
                os.ftruncate(self.fd, self._file_bytes)
            # The very same file: a second look at its name might find another.
            self._cached_fd = os.open(path_of(self.fd), os.O_RDWR | os.O_CLOEXEC)
        self._is_direct, self._is_cached = _set_direct(self.fd), False
        self.holds_zeros = is_new

    def end_at(self, size_bytes: int) -> None:
        """A file that was begun without knowing how long it would be is so long."""
        with write_errors(self.name, self._way_out):
            os.ftruncate(self.fd, size_bytes)
        self._file_bytes = size_bytes

    def write(self, view: memoryview, offset: int) -> None:
        with write_errors(self.name, self._way_out):
            done = 0
            for start, stop in data_runs(view):
                if start > done and not self.holds_zeros:
                    make_zeros(self.fd, offset + done, start - done)
                self._pwrite(view[start:stop], offset + start)
                done = stop
            if done < len(view) and not self.holds_zeros:
                make_zeros(self.fd, offset + done, len(view) - done)

    def read_into(self, view: memoryview, offset: int) -> None:
        """What it holds there now. SnapfsError: it cannot be read."""
        try:
            read_whole(self._cached_fd, view, offset)
        except OSError as error:
            raise SnapfsError(
                f"{self.name} cannot be read at {offset}: {error.strerror}; check the disk it is on.", path=self.path
            ) from error
        self._is_cached = True

    def write_zeros(self, offset: int, length: int) -> None:
        if not self.holds_zeros:
            with write_errors(self.name, self._way_out):
                make_zeros(self.fd, offset, length)

    def sync(self) -> None:
        with write_errors(self.name, self._way_out):
            os.fdatasync(self.fd)
            if self._is_cached:
                os.posix_fadvise(self._cached_fd, 0, 0, os.POSIX_FADV_DONTNEED)
                self._is_cached = False
            status = os.fstat(self.fd)
            if not os.path.samestat(status, os.stat(self.path)):
                raise vanished(self.name)
            if self._file_bytes not in (None, status.st_size):
                raise SnapfsError(
                    f"Somebody else has changed the size of {self.name} while it was written; see who did, then "
                    f"{self._way_out}.",
                    path=self.path,
                )

    def finish(self) -> None:
        """A file has its size from the beginning."""

    def close(self) -> None:
        os.close(self._cached_fd)

    def _pwrite(self, view: memoryview, offset: int) -> None:
        if self._is_direct and len(view) >= _LARGE_BYTES and not (offset | len(view)) % _ALIGNMENT:
            try:
                write_whole(self.fd, view, offset)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._is_direct = False
        write_whole(self._cached_fd, view, offset)
        self._is_cached = True


class StreamTarget:
    """A pipe: everything in order, zeros too. Nothing that went into it is known to be anywhere."""

    is_durable = False
    name = "the standard output"

    def __init__(self, fd: int, size_bytes: int, compressor: Any = None) -> None:
        """Everything goes through `compressor`, if there is one (see `zstd`)."""
        self._fd, self._size_bytes, self._compressor = fd, size_bytes, compressor
        self._offset = 0

    def write(self, view: memoryview, offset: int) -> None:
        self._fill_to(offset)
        self._put(view)

    def write_zeros(self, offset: int, length: int) -> None:
        """Whatever is not written is filled with zeros anyway."""

    def sync(self) -> None:
        """Nobody can know where it is."""

    def finish(self) -> None:
        self._fill_to(self._size_bytes)
        if self._compressor is not None:
            self._send(memoryview(self._compressor.flush()))

    def close(self) -> None:
        """The stream is the caller's."""

    def _fill_to(self, offset: int) -> None:
        zeros = memoryview(_ZEROS)
        while self._offset < offset:
            self._put(zeros[: min(len(zeros), offset - self._offset)])

    def _put(self, view: memoryview) -> None:
        self._offset += len(view)
        self._send(view if self._compressor is None else memoryview(self._compressor.compress(view)))

    def _send(self, view: memoryview) -> None:
        try:
            put_whole(self._fd, view)
        except BrokenPipeError as error:
            raise ReaderGoneError("Whoever read the backup from the pipe has ended; see what it says.") from error
        except OSError as error:
            raise SnapfsError(f"The standard output cannot be written: {error.strerror}.") from error


def _set_direct(fd: int) -> bool:
    """Whether what is written to `fd` goes past the page cache from now on."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError:
        return False
    return True
