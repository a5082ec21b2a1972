"""A qcow2 file as the place of a backup, and a backup of such files, read; both through `qemu`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from snapfs.destination.write_errors import vanished, write_errors
from snapfs.errors import SnapfsError
from snapfs.imager import qemu
from snapfs.imager.extents import CELL_BYTES
from snapfs.imager.qemu import Export, Link
from snapfs.imager.sparse import data_runs

_SECTOR_BYTES: Final = 512


class Qcow2Target:
    """A qcow2 file as the place of a backup; with `keep` what is in it already."""

    is_durable = True

    def __init__(
        self,
        fd: int,
        path: Path,
        size_bytes: int,
        *,
        compress: bool,
        keep: bool,
        way_out: str,
        backing: str | None = None,
    ) -> None:
        """`fd` is the file at `path` and stays the caller's. `backing` is what it says to be below it, which is
        neither read nor looked for."""
        self._fd, self.path, self.name, self._way_out = fd, path, str(path), way_out
        self._link = Link(fd, path, backing)
        # What compresses takes whole clusters only, so the image is made a little too long, and cut at the end.
        self._size_bytes = _rounded(size_bytes, _SECTOR_BYTES)
        self._open_bytes = _rounded(size_bytes, CELL_BYTES) if compress else self._size_bytes
        self._cuts_end = False
        self._is_too_long = self._open_bytes != self._size_bytes
        if keep:
            self._link.check()
            qemu.grow(self._link, self._open_bytes)
        else:
            # Whoever was killed may have left a part of a header.
            os.ftruncate(fd, 0)
            qemu.create(self._link, self._open_bytes)
        self._export = Export(self._link, compress=compress)
        self._client = self._export.client
        # A compressed cluster cannot take the place of one that an interrupted run has written.
        self._clears = keep and compress
        self._is_whole = True

    def write(self, view: memoryview, offset: int) -> None:
        with self._errors():
            if self._clears:
                self._client.write_zeroes(offset, len(view))
            for start, stop in data_runs(view):
                self._client.write(_in_sectors(view[start:stop]), offset + start)

    def write_zeros(self, offset: int, length: int) -> None:
        """A new qcow2 is zeros already."""

    def hide(self, offset: int, length: int) -> None:
        """Zeros in this file, whatever is below it, in whole clusters: a part of one would be read and written."""
        with self._errors():
            self._client.write_zeroes(offset, min(_rounded(length, CELL_BYTES), self._open_bytes - offset))

    def sync(self) -> None:
        with self._errors():
            self._client.flush()
            if not os.path.samestat(os.fstat(self._fd), os.stat(self.path)):
                raise vanished(self.name)

    def finish(self) -> None:
        self._cuts_end = self._is_too_long

    def close(self) -> None:
        self._export.close(cleanly=self._is_whole)
        if self._cuts_end and self._is_whole:
            qemu.shorten(self._link, self._size_bytes)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with write_errors(self.name, self._way_out), self._export.noticing_its_end(self._way_out):
                yield
        except SnapfsError:
            self._is_whole = False
            raise


class Qcow2Reader:
    """A qcow2 backup, read, with those below it; closes them all."""

    def __init__(self, *links: Link) -> None:
        self._links = links
        self._export = Export(*links, read_only=True)
        self.size_bytes = self._export.client.size_bytes

    def read_into(self, view: memoryview, offset: int) -> None:
        with self._export.noticing_its_end("try again"):
            self._export.client.read_into(view, offset)

    def close(self) -> None:
        with contextlib.suppress(SnapfsError):
            self._export.close()
        for link in self._links:
            os.close(link.fd)


def _in_sectors(view: memoryview) -> memoryview:
    """The end of an image that is no multiple of a sector, with zeros after it: qcow2 counts in sectors."""
    missing = -len(view) % _SECTOR_BYTES
    return memoryview(bytes(view) + bytes(missing)) if missing else view


def _rounded(length: int, unit: int) -> int:
    return -(-length // unit) * unit
