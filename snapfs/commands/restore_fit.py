"""A backup onto a disk, or over an image, of another size: whether it fits, and its GPT moved to the new end.

Rules
- Onto a larger one all is written as onto one of the same size; with --fit-gpt the GPT is moved afterwards.
- Onto a smaller one only what reaches behind nothing that is needed: every partition or filesystem that the manifest
  knows of ends before, and what is behind (but the second copy of the GPT) is free, or read, and zeros.
- What is refused is refused before anything is written; only a stream comes too late for that, and is never cut.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from snapfs.commands.whole_image import RESTORE
from snapfs.destination.place import Place
from snapfs.destination.write_errors import write_errors
from snapfs.errors import BackupDamagedError, SnapfsError, UsageError
from snapfs.imager.extents import read_range
from snapfs.imager.gpt import Gpt, find_gpt
from snapfs.imager.manifest import Manifest
from snapfs.imager.reader import BackupReader, Reader
from snapfs.imager.stages import PIECE_BYTES
from snapfs.options import format_size
from snapfs.system.block_ioctl import sector_bytes_of, size_bytes_of
from snapfs.system.descriptors import path_of
from snapfs.usedmap.source import Source
from snapfs.whole import write_whole

# Regions that nobody needs as a whole: what is in them is looked at.
_NOBODYS: Final = ("gap", "gpt", "dos")


@dataclass(frozen=True)
class Fit:
    """What is written: `target_bytes` is the size of IMAGE, of the backup what is before `limit`."""

    target_bytes: int
    limit: int
    moves_gpt: bool = False
    # Not known before all of a stream was read.
    gpt: Gpt | None = None
    sector_bytes: int | None = None

    def within(self, offset: int, length: int) -> int:
        """How much of a range is written."""
        return max(min(offset + length, self.limit) - offset, 0)

    def move_gpt(self, fd: int, image_bytes: int, name: str) -> None:
        """When all is written and durable. SnapfsError: a stream that had no GPT, or one for other disks."""
        if not self.moves_gpt:
            return
        with write_errors(name, RESTORE.way_out):
            # Past the page cache only whole blocks could be read and written.
            cached = os.open(path_of(fd), os.O_RDWR | os.O_CLOEXEC)
            try:
                gpt = self.gpt or _gpt_of(Source(cached, image_bytes), name)
                _check_takes(gpt, name, self.target_bytes, self.sector_bytes)
                for offset, content in gpt.moved(self.target_bytes):
                    write_whole(cached, memoryview(content), offset)
                    os.fdatasync(cached)
            finally:
                os.close(cached)


def planned_fit(reader: BackupReader, place: Place, *, fits_gpt: bool, is_stream: bool) -> Fit:
    """How the backup comes to an image that is there. SnapfsError: it does not, or only with --fit-gpt."""
    image_bytes = reader.manifest.image_bytes
    target_bytes, sector_bytes = _measured(place)
    if target_bytes == image_bytes or (target_bytes > image_bytes and not fits_gpt):
        return Fit(target_bytes, image_bytes)
    if is_stream:
        if target_bytes < image_bytes:
            raise _too_small(place.named, target_bytes, image_bytes)
        return Fit(target_bytes, image_bytes, moves_gpt=True, sector_bytes=sector_bytes)
    source = Source(_Bytes(reader), image_bytes)
    gpt = _gpt_of(source, str(reader.path)) if fits_gpt else find_gpt(source, str(reader.path))
    if target_bytes < image_bytes:
        needed_bytes = _needed_bytes(reader, gpt)
        if target_bytes < needed_bytes:
            raise _too_small(place.named, target_bytes, needed_bytes)
        if gpt is not None and not fits_gpt:
            raise SnapfsError(
                f"{place.named} is smaller than the backup, whose GPT has to be moved; say --fit-gpt.",
                path=place.named,
            )
    if gpt is not None:
        _check_takes(gpt, place.named, target_bytes, sector_bytes)
    return Fit(target_bytes, min(target_bytes, image_bytes), moves_gpt=fits_gpt, gpt=gpt)


class Reaching:
    """A smaller image that was restored, and behind its end the backup: for comparing all extents."""

    def __init__(self, image: Reader, limit: int, backup: BackupReader) -> None:
        self._image, self._limit, self._backup = image, limit, backup
        self.size_bytes = backup.manifest.image_bytes

    def read_into(self, view: memoryview, offset: int) -> None:
        count = max(min(len(view), self._limit - offset), 0)
        if count:
            self._image.read_into(view[:count], offset)
        if count < len(view):
            self._backup.read_into(view[count:], offset + count)

    def close(self) -> None:
        self._image.close()


class _Bytes:
    """A backup for those who read partition tables."""

    def __init__(self, reader: BackupReader) -> None:
        self._reader = reader

    def preadv_into(self, buffer: memoryview, offset: int) -> int:
        self._reader.read_into(buffer, offset)
        return len(buffer)


def _measured(place: Place) -> tuple[int, int | None]:
    """The size of what is there, and of a device its sector."""
    if not place.is_device:
        assert place.status is not None
        return place.status.st_size, None
    try:
        fd = os.open(place.real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            return size_bytes_of(fd), sector_bytes_of(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise SnapfsError(
            f"{place.named} cannot be looked at: {error.strerror}; name another device.", path=place.named
        ) from error


def _gpt_of(source: Source, name: str) -> Gpt:
    gpt = find_gpt(source, name)
    if gpt is None:
        raise UsageError(f"{name} has no GPT; leave out --fit-gpt.")
    return gpt


def _check_takes(gpt: Gpt, name: str | Path, target_bytes: int, sector_bytes: int | None) -> None:
    """SnapfsError: it is for a larger disk, or one of other sectors."""
    if target_bytes < gpt.least_bytes():
        raise _too_small(name, target_bytes, gpt.least_bytes())
    if sector_bytes is not None and sector_bytes != gpt.sector_bytes:
        raise SnapfsError(
            f"{name} has sectors of {sector_bytes} bytes, the GPT of the backup counts in {gpt.sector_bytes}; "
            "name another device.",
            path=name,
        )


def _too_small(name: str | Path, target_bytes: int, needed_bytes: int) -> SnapfsError:
    return SnapfsError(
        f"{name} has {format_size(target_bytes)}, the backup needs {needed_bytes} bytes; name a device or an image "
        "that is large enough.",
        path=name,
    )


def _needed_bytes(reader: BackupReader, gpt: Gpt | None) -> int:
    """How small an image may be that has all that anybody needs of the backup."""
    end = max(_regions_end(reader), 0 if gpt is None else gpt.partitions_end())
    own = [] if gpt is None else list(gpt.second_places())
    end = max(end, _data_end(reader, end, own))
    return end if gpt is None else gpt.least_bytes(end)


def _regions_end(reader: BackupReader) -> int:
    """The byte behind the last partition or filesystem. BackupDamagedError: somebody has changed what is listed."""
    try:
        regions: list[Mapping[str, Any]] = list(reader.manifest.facts.get("regions", ()))
        if not regions:
            return reader.manifest.image_bytes
        owned = [one for one in regions if one["kind"] not in _NOBODYS or one["partition_number"] is not None]
        return max((sum(read_range(one["offset"], one["length"])) for one in owned), default=0)
    except (KeyError, TypeError, ValueError) as error:
        raise BackupDamagedError(
            f"The manifest of {reader.path} does not list what is where: {error}; name a disk of the same size.",
            path=reader.path,
        ) from error


def _data_end(reader: BackupReader, start: int, own: list[tuple[int, int]]) -> int:
    """The byte behind the last one from `start` on that is not zero, but for what is in `own`; 0 without any."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    for offset, length in _pieces_backwards(reader.manifest, start):
        view = buffer[:length]
        reader.read_into(view, offset)
        for at, count in own:
            first, last = max(at - offset, 0), min(at + count - offset, length)
            if first < last:
                view[first:last] = bytes(last - first)
        if kept := len(bytes(view).rstrip(b"\0")):
            return offset + kept
    return 0


def _pieces_backwards(manifest: Manifest, start: int) -> Iterator[tuple[int, int]]:
    for hashed in reversed(manifest.extents):
        extent = hashed.extent
        if extent.end <= start:
            return
        if hashed.digest is not None:
            for offset, length in reversed(list(extent.pieces(PIECE_BYTES))):
                first = max(offset, start)
                if first < offset + length:
                    yield first, offset + length - first
