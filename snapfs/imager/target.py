"""Where a backup or a restored image is written: a file, a block device, a stream.

Rules
- A file is written under a name of its own (DEST.partial) and renamed when it is whole and durable: a finished
  name means a finished file.
- Large writes go past the page cache where the filesystem lets them: nobody reads the backup soon, its pages
  would push out of memory what the machine needs, and syncing then takes no time.
- Small ones go through it, or each would wait for the disk: a large image has thousands of small metadata extents.
- Cells that hold zeros become holes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from snapfs.errors import BusyError, SnapfsError
from snapfs.imager.sparse import data_runs, make_zeros
from snapfs.system.holders import describe, holders_of_image

_BLKGETSIZE64: Final = 0x80081272
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


def partial_path(path: Path) -> Path:
    """The name of `path` while it is unfinished."""
    return path.with_name(path.name + ".partial")


@contextlib.contextmanager
def write_errors(name: str, way_out: str) -> Iterator[None]:
    """What the operating system refuses, as sentences."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise SnapfsError(
                f"{name} does not fit: {error.strerror}; make room, then {way_out}.", path=name
            ) from error
        if error.errno == errno.EFBIG:
            raise SnapfsError(
                f"{name} is too large a file for its filesystem; write elsewhere.", path=name
            ) from error
        if error.errno in (errno.ENOENT, errno.ESTALE):
            raise vanished(name) from error
        raise SnapfsError(
            f"{name} cannot be written: {error.strerror}; check the disk it is on, then {way_out}.", path=name
        ) from error


def vanished(name: str) -> SnapfsError:
    """The file was removed or renamed by somebody else."""
    return SnapfsError(f"{name} has vanished while it was written; see who removed it, and begin again.", path=name)


class FileTarget:
    """A file, or a block device, open for writing. `holds_zeros`: what is not written reads as zeros already."""

    is_durable = True

    def __init__(self, path: Path, size_bytes: int, *, keep: bool, way_out: str, name: str | None = None) -> None:
        """Opens `path`; a file is created, and emptied first unless `keep`; a device must be large enough."""
        self.path, self.name, self._way_out = path, name or str(path), way_out
        with write_errors(self.name, way_out):
            is_device = path.exists() and stat.S_ISBLK(path.stat().st_mode)
            self.fd = _open_device(path, size_bytes) if is_device else _open_file(path)
        try:
            with write_errors(self.name, way_out):
                if not is_device:
                    if not keep:
                        os.ftruncate(self.fd, 0)
                    os.ftruncate(self.fd, size_bytes)
                # The very same file: a second look at its name might find another.
                self._cached_fd = os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)
        except BaseException:
            os.close(self.fd)
            raise
        self._is_direct, self._is_cached = _set_direct(self.fd), False
        self.holds_zeros = not is_device and not keep

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
            if not os.path.samestat(os.fstat(self.fd), os.stat(self.path)):
                raise vanished(self.name)

    def finish(self) -> None:
        """A file has its size from the beginning."""

    def close(self) -> None:
        os.close(self._cached_fd)
        os.close(self.fd)

    def _pwrite(self, view: memoryview, offset: int) -> None:
        if self._is_direct and len(view) >= _LARGE_BYTES and not (offset | len(view)) % _ALIGNMENT:
            try:
                _write_whole(self.fd, view, offset)
                return
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._is_direct = False
        _write_whole(self._cached_fd, view, offset)
        self._is_cached = True


class StreamTarget:
    """A pipe: everything in order, zeros too. Nothing that went into it is known to be anywhere."""

    is_durable = False
    name = "the standard output"

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._fd, self._size_bytes = fd, size_bytes
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

    def close(self) -> None:
        """The stream is the caller's."""

    def _fill_to(self, offset: int) -> None:
        zeros = memoryview(_ZEROS)
        while self._offset < offset:
            self._put(zeros[: min(len(zeros), offset - self._offset)])

    def _put(self, view: memoryview) -> None:
        self._offset += len(view)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except BrokenPipeError as error:
            raise SnapfsError("Whoever read the backup from the pipe has ended; see what it says.") from error
        except OSError as error:
            raise SnapfsError(f"The standard output cannot be written: {error.strerror}.") from error


def _open_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _open_device(path: Path, size_bytes: int) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        holders = holders_of_image(path)
        who = describe(holders) or "the kernel does not say by whom"
        raise BusyError(
            f"{path} is in use: {who}; end that and try again.",
            path=path,
            holders=[holder.description for holder in holders],
        ) from error
    device_bytes = int(struct.unpack("=Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0])
    if device_bytes < size_bytes:
        os.close(fd)
        raise SnapfsError(
            f"{path} has {device_bytes} bytes, the image {size_bytes}; name a device that is large enough.", path=path
        )
    return fd


def _set_direct(fd: int) -> bool:
    """Whether what is written to `fd` goes past the page cache from now on."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)
    except OSError:
        return False
    return True


def _write_whole(fd: int, view: memoryview, offset: int) -> None:
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count
