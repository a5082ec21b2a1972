"""When each part of the image was changed last, as the cuts see it: a table in the directory of each cut.

Rules:
- Of two tables of a store, whichever cuts they are of: if a part has the same time in both, both cuts read the same
  bytes there. The reverse only costs whoever copies what differs.
- A table tells of what is read by one map of free blocks, which reads as zeros: its digest is in the table. With
  another map, or with one where there was none, the table tells nothing.
- A part without an entry was changed at the base time: a new table is one hole.
- A table that is damaged is none.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cow.disk.codec import checksum, checksum_stream
from cow.disk.cut import Cut
from cow.disk.directory import FREE_SEAL_NAME, TIMES_NAME
from cow.disk.files import Data, Files
from cow.disk.layout import PART_BYTES, TIMES, TIMES_ENTRIES_OFFSET, TIMES_MAGIC, CutCounter
from cow.disk.plain import open_plain, read_plain
from cow.geometry import Geometry

NO_MAP: Final = bytes(16)
_ENTRY_BYTES: Final = 8
_PAGE_BYTES: Final = 4096
_ZEROS: Final = bytes(_PAGE_BYTES)
_CHECKSUM_BYTES: Final = 8
_READ_BYTES: Final = 1 << 20


def part_count(geometry: Geometry) -> int:
    """How many parts the image has; the last may be shorter."""
    return -(-geometry.image_bytes // PART_BYTES)


def free_digest(cut: Cut) -> bytes:
    """Which map of free blocks the readers of `cut` go by: its digest, `NO_MAP` for none. OSError: nobody knows."""
    if not cut.numbers[CutCounter.FREE_BLOCKS]:
        return NO_MAP
    try:
        return bytes.fromhex(read_plain(cut.path / FREE_SEAL_NAME).decode("ascii"))
    except ValueError as error:
        raise OSError(f"{cut.path / FREE_SEAL_NAME} is damaged") from error


@dataclass(slots=True)
class Times:
    """A table in memory. `entries`: a time in ns for each part, 0 for the base time; none is after `latest_ns`."""

    base_ns: int
    latest_ns: int
    free: bytes
    entries: mmap.mmap

    @classmethod
    def empty(cls, parts: int, base_ns: int, latest_ns: int, free: bytes = NO_MAP) -> Times:
        """Untouched pages of it take no memory."""
        entries_bytes = -(-parts * _ENTRY_BYTES // _PAGE_BYTES) * _PAGE_BYTES
        return cls(base_ns, latest_ns, free, mmap.mmap(-1, entries_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    @property
    def by_part(self) -> memoryview:
        return memoryview(self.entries).cast("Q")

    def first_at(self, time_ns: int) -> int | None:
        """The first part that was changed at that time, unless that is the base time."""
        wanted, at = time_ns.to_bytes(_ENTRY_BYTES, "little"), -1
        while (at := self.entries.find(wanted, at + 1)) >= 0:
            if at % _ENTRY_BYTES == 0:
                return at // _ENTRY_BYTES
        return None

    def write(self, path: Path, parts: int, files: Files, *, durable: bool) -> None:
        """It is there as a whole, or not at all."""
        pages = [(at, self.entries[at : at + _PAGE_BYTES]) for at in range(0, len(self.entries), _PAGE_BYTES)]
        pages = [(at, page) for at, page in pages if page != _ZEROS]
        start = _Start(PART_BYTES, self.free, self.base_ns, self.latest_ns, parts, _digest(pages))
        pieces: list[tuple[int, Data]] = [(0, start.pack())]
        pieces += [(TIMES_ENTRIES_OFFSET + at, self.entries[at:end]) for at, end in _runs(pages)]
        files.write_pieces(path, pieces, size_bytes=TIMES_ENTRIES_OFFSET + len(self.entries), durable=durable)


@dataclass(frozen=True, slots=True)
class _Start:
    """What a table begins with."""

    part_bytes: int
    free: bytes
    base_ns: int
    latest_ns: int
    parts: int
    digest: bytes

    def pack(self) -> bytes:
        fields = self.part_bytes, self.free, self.base_ns, self.latest_ns, self.parts, self.digest
        packed = TIMES.pack(TIMES_MAGIC, *fields, 0)[:-_CHECKSUM_BYTES]
        return packed + checksum(packed).to_bytes(_CHECKSUM_BYTES, "little")

    @classmethod
    def read(cls, fd: int) -> _Start | None:
        data = os.pread(fd, TIMES.size, 0)
        if len(data) < TIMES.size:
            return None
        magic, *fields, found = TIMES.unpack(data)
        if magic != TIMES_MAGIC or found != checksum(data[:-_CHECKSUM_BYTES]) or fields[0] != PART_BYTES:
            return None
        return cls(*fields)


def read_times(path: Path, geometry: Geometry) -> Times | None:
    """The table there; None for none, or a damaged one."""
    try:
        with open(open_plain(path, os.O_RDONLY), "rb") as file:
            start = _Start.read(file.fileno())
            if start is None or start.parts != part_count(geometry):
                return None
            times = Times.empty(start.parts, start.base_ns, start.latest_ns, start.free)
            pages = []
            for at, page in _pages(file.fileno()):
                times.entries[at : at + len(page)] = page
                pages.append((at, page))
            return times if _digest(pages) == start.digest else None
    except (OSError, ValueError, IndexError):
        return None


def latest_of(path: Path) -> int:
    """The latest time of the table there; 0 for none."""
    try:
        with open(open_plain(path, os.O_RDONLY), "rb") as file:
            start = _Start.read(file.fileno())
            return 0 if start is None else start.latest_ns
    except OSError:
        return 0


def _pages(fd: int) -> Iterator[tuple[int, bytes]]:
    """The pages of the entries that are not all zeros."""
    end, offset = os.fstat(fd).st_size, TIMES_ENTRIES_OFFSET
    while offset < end:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError:
            return
        stop = os.lseek(fd, offset, os.SEEK_HOLE)
        offset -= offset % _PAGE_BYTES
        while offset < stop:
            data = os.pread(fd, _READ_BYTES, offset)
            for at in range(0, len(data), _PAGE_BYTES):
                page = data[at : at + _PAGE_BYTES]
                if page != _ZEROS:
                    yield offset + at - TIMES_ENTRIES_OFFSET, page
            offset += len(data) or stop


def _runs(pages: list[tuple[int, bytes]]) -> Iterator[tuple[int, int]]:
    """Where those that follow one another begin and end."""
    start = end = -1
    for at, page in pages:
        if at != end:
            if start < end:
                yield start, end
            start = at
        end = at + len(page)
    if start < end:
        yield start, end


def _digest(pages: list[tuple[int, bytes]]) -> bytes:
    digest = checksum_stream()
    for at, page in pages:
        digest.update(at.to_bytes(8, "little"))
        digest.update(page)
    return digest.digest()


class PartTimes:
    """The table of a cut, looked at where it lies; it is verified once."""

    def __init__(self, cut: Cut, geometry: Geometry) -> None:
        """FileNotFoundError: there is none that tells of what is read now."""
        path = cut.path / TIMES_NAME
        self._numbers = cut.numbers
        self.fd = open_plain(path, os.O_RDONLY)
        try:
            start = _Start.read(self.fd)
            is_whole = (
                start is not None
                and start.parts == part_count(geometry)
                and (_digest(list(_pages(self.fd))) == start.digest)
            )
            if start is None or not is_whole or start.free != free_digest(cut):
                raise FileNotFoundError(path)
        except BaseException:
            self.close()
            raise
        self._start = start

    @property
    def is_valid(self) -> bool:
        """Whether what is read is still what it tells of: a map may become known late."""
        return bool(self._numbers[CutCounter.FREE_BLOCKS]) == (self._start.free != NO_MAP)

    @property
    def latest_ns(self) -> int:
        return self._start.latest_ns

    def changed_ns(self, offset: int, length: int) -> int:
        """When the bytes at `offset`, `length` of them, from the start of a part on, were changed last. OSError: the
        disk refuses."""
        first, end = offset // PART_BYTES, -(-(offset + length) // PART_BYTES)
        data = os.pread(self.fd, (end - first) * _ENTRY_BYTES, TIMES_ENTRIES_OFFSET + first * _ENTRY_BYTES)
        if len(data) < (end - first) * _ENTRY_BYTES:
            raise OSError("the table of times was cut short")
        return max(self._start.base_ns, *memoryview(data).cast("Q"))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
