"""An image that nobody uses, as the source of a backup. Rules: see `source`."""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path
from typing import Any

from bitarray import bitarray

from cow import Files, Image
from snapfs.ahead import read_ahead
from snapfs.destination.access import Access
from snapfs.errors import SnapfsError
from snapfs.imager.extents import Extent, clear_free, plan, used_blocks_in, used_bytes
from snapfs.imager.medium import BAD_MEDIUM, Rereader
from snapfs.imager.sparse import hole_cells
from snapfs.imager.unread import UnreadableError
from snapfs.options import DEFAULT_BLOCK_BYTES
from snapfs.system.block_ioctl import sector_bytes_of, size_bytes_of
from snapfs.system.default_store import check_whole
from snapfs.system.image_lock import lock_image
from snapfs.system.image_probe import check_image_size, check_image_unused
from snapfs.usedmap.scan import scan
from snapfs.whole import read_whole


class ImageSource:
    """An image file or block device that nobody uses, read as it is."""

    def __init__(self, path: Path, *, skip_swap: bool = False) -> None:
        self._skip_swap = skip_swap
        self.path = path.absolute()
        _check_kind(path)
        check_image_unused(path)
        check_whole(self.path)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise SnapfsError(f"{path} cannot be opened: {error.strerror}; run as its owner.", path=path) from error
        try:
            lock_image(self._fd)
            self._status, self.access = os.fstat(self._fd), Access.of(self._fd)
            self._measure()
        except BaseException:
            os.close(self._fd)
            raise

    def _measure(self) -> None:
        is_device = stat.S_ISBLK(self._status.st_mode)
        self.size_bytes = size_bytes_of(self._fd)
        check_image_size(self.path, self.size_bytes)
        self.block_bytes = DEFAULT_BLOCK_BYTES
        sector_bytes = sector_bytes_of(self._fd) if is_device else None
        image_map = scan(
            self._fd, self.size_bytes, self.block_bytes, sector_bytes=sector_bytes, skip_swap=self._skip_swap
        )
        self.used = image_map.used
        self.used_bytes = used_bytes(self.used, self.block_bytes, self.size_bytes)
        regions = [region.facts() for region in image_map.regions]
        self.facts = {"image": str(self.path), "cut": None, "regions": regions}
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    @property
    def identity(self) -> dict[str, Any]:
        status = self._status
        image = [status.st_dev, status.st_ino, status.st_rdev, status.st_mtime_ns, self.size_bytes]
        return {"image": image, "skip_swap": self._skip_swap}

    def holes(self) -> bitarray | None:
        return hole_cells(Image(self._fd, self.size_bytes, Files()))

    def extents(self) -> list[Extent]:
        return plan(self.used, self.block_bytes, self.size_bytes, self.holes())

    def read_into(self, view: memoryview, offset: int) -> None:
        try:
            read_whole(self._fd, view, offset)
        except OSError as error:
            if error.errno not in BAD_MEDIUM:
                raise self._unreadable(error, offset) from error
            # Perhaps only what nobody needs is bad.
            self.reread_into(view, offset)
        # What was read once is not needed again, and would push out of memory what others need.
        os.posix_fadvise(self._fd, offset, len(view), os.POSIX_FADV_DONTNEED)
        clear_free(view, offset, self.used, self.block_bytes)

    def will_read(self, offset: int, length: int) -> None:
        read_ahead(self._fd, offset, length)

    def reread_into(self, view: memoryview, offset: int) -> None:
        for start, stop in used_blocks_in(self.used, self.block_bytes, offset, len(view)):
            try:
                self._rereader.read_into(view[start:stop], offset + start)
            except OSError as error:
                # One that was cut short has no bad bytes.
                self.check()
                raise self._unreadable(error, offset + start) from error
        clear_free(view, offset, self.used, self.block_bytes)

    def reread_unit_bytes(self) -> int:
        return self._rereader.unit_bytes

    def _unreadable(self, error: OSError, offset: int) -> SnapfsError:
        if error.errno not in BAD_MEDIUM:
            sentence = f"{self.path} cannot be read at {offset}: {error.strerror}; check the disk it is on."
            return SnapfsError(sentence, path=self.path)
        return UnreadableError(
            f"{self.path} cannot be read at {offset}: {error.strerror}; check the disk it is on, or go on past what "
            "is bad with --on-read-error skip.",
            path=self.path,
        )

    def release(self, offset: int, length: int) -> None:
        raise AssertionError("an image that is not mounted owes nothing")

    def check(self) -> None:
        status = os.fstat(self._fd)
        if (status.st_mtime_ns, status.st_size) != (self._status.st_mtime_ns, self._status.st_size):
            raise SnapfsError(
                f"{self.path} was changed while it was read, so the backup is worthless; "
                "mount it with snapfs and back up the snapshot.",
                path=self.path,
            )

    def buffer_bytes(self) -> int | None:
        return None

    def close(self) -> None:
        if "_rereader" in self.__dict__:
            self._rereader.close()
        os.close(self._fd)

    @functools.cached_property
    def _rereader(self) -> Rereader:
        return Rereader(self._fd)


def _check_kind(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise SnapfsError(f"{path}: {error.strerror}; name LIVE, SNAP or an image.", path=path) from error
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise SnapfsError(
            f"{path} is neither mounted with snapfs nor an image; name LIVE, SNAP, a file or a device.", path=path
        )
