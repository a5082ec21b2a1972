"""NAME.cells: which cells of the image a backup holds, as data or as zeros, and the digest of each that is data.

Rules
- A cell that holds nothing but zeros is never held as data.
- The maps are checked when a table is opened, the digests only where all of it is (`check_whole`): a wrong digest
  makes a backup larger, or says of good data that they are bad, but never the other way round.
- No object a cell: a TiB has 16 million.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Final

import numpy as np
from bitarray import bitarray
from blake3 import blake3

from snapfs.backups.layout import CELLS_HEADER, CELLS_MAGIC, VERSION
from snapfs.errors import BackupDamagedError, SnapfsError
from snapfs.imager.extents import CELL_BYTES, cell_count
from snapfs.imager.hashing import DIGEST_BYTES
from snapfs.system.file_kinds import open_readable
from snapfs.whole import read_at_most, write_whole

Digests = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
# So many cells have one sum of what is before them.
_SPAN: Final = 4096
_PIECE_BYTES: Final = 1 << 20
_HOLE_BYTES: Final = 4096
_DATA, _ZEROS = 0, 1


class Table:
    """One table, open. Nothing of it is kept in memory but a number for every so many cells."""

    def __init__(self, path: Path, image_bytes: int, maps_blake3: str) -> None:
        """BackupDamagedError: it is not the one with these maps."""
        self.path, self.image_bytes = path, image_bytes
        self._count = cell_count(image_bytes)
        self._map_bytes = -(-self._count // 8)
        self._digests_at = CELLS_HEADER.size + 2 * self._map_bytes
        with reading(path):
            self._fd = open_readable(path, "name a directory of backups", flags=os.O_NOFOLLOW)
        try:
            self._parse(maps_blake3)
        except BaseException:
            self.close()
            raise

    def _parse(self, maps_blake3: str) -> None:
        size = os.fstat(self._fd).st_size
        if size < self._digests_at:
            raise damaged_table(self.path)
        head = self._read(0, self._digests_at)
        facts = CELLS_HEADER.unpack_from(head)
        if (
            facts[:4] != (CELLS_MAGIC, VERSION, CELL_BYTES, self.image_bytes)
            or blake3(head).hexdigest() != maps_blake3
        ):
            raise damaged_table(self.path)
        data, hidden = self.maps()
        if facts[4:] != (data.count(), hidden.count()) or size != self._digests_at + facts[4] * DIGEST_BYTES:
            raise damaged_table(self.path)
        self._sums = [0, *accumulate(data.count(1, at, at + _SPAN) for at in range(0, self._count, _SPAN))]

    def maps(self) -> tuple[bitarray, bitarray]:
        """A bit per cell: what is held as data, and what as zeros."""
        return self._bits(_DATA, 0, self._count), self._bits(_ZEROS, 0, self._count)

    def check_whole(self, whole_blake3: str) -> None:
        """BackupDamagedError when anything in it is not what was written."""
        hasher = blake3()
        size = os.fstat(self._fd).st_size
        for at in range(0, size, _PIECE_BYTES):
            hasher.update(self._read(at, min(_PIECE_BYTES, size - at)))
        if hasher.hexdigest() != whole_blake3:
            raise damaged_table(self.path)

    def data_in(self, first: int, end: int) -> bitarray:
        """Which cells of the range are held as data."""
        return self._bits(_DATA, first, end)

    def digests(self, first: int, end: int) -> Digests:
        """Of the cells in the range that are held as data, in order."""
        span = first // _SPAN
        rank = self._sums[span] + self._bits(_DATA, span * _SPAN, first).count()
        count = self._bits(_DATA, first, end).count()
        found = self._read(self._digests_at + rank * DIGEST_BYTES, count * DIGEST_BYTES)
        return np.frombuffer(found, np.uint8).reshape(count, DIGEST_BYTES)

    def _bits(self, which: int, first: int, end: int) -> bitarray:
        start = first // 8
        bits = bitarray(endian="little")
        at = CELLS_HEADER.size + which * self._map_bytes + start
        bits.frombytes(self._read(at, -(-end // 8) - start))
        return bits[first - start * 8 : end - start * 8]

    def _read(self, at: int, length: int) -> bytes:
        buffer = bytearray(length)
        with reading(self.path):
            if read_at_most(self._fd, memoryview(buffer), at) < length:
                raise damaged_table(self.path)
        return bytes(buffer)

    def close(self) -> None:
        os.close(self._fd)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """What the operating system refuses, as sentences."""
    try:
        yield
    except FileNotFoundError as error:
        raise BackupDamagedError(
            f"{path} is missing, and a backup with it; look for it, or take another copy.", path=path
        ) from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BackupDamagedError(
                f"{path} is a symbolic link, which snapfs has not made; put the file itself there.", path=path
            ) from error
        raise SnapfsError(f"{path} cannot be read: {error.strerror}; check the disk it is on.", path=path) from error


def write_table(
    fd: int, image_bytes: int, data: bitarray, zeros: bitarray, digests: Iterator[bytes]
) -> tuple[str, str]:
    """Write one into an empty file, with the digests of its `data` in order. The BLAKE3 of its maps, and of all."""
    head = CELLS_HEADER.pack(CELLS_MAGIC, VERSION, CELL_BYTES, image_bytes, data.count(), zeros.count())
    maps = head + data.tobytes() + zeros.tobytes()
    hasher = blake3(maps)
    maps_blake3 = hasher.hexdigest()
    os.ftruncate(fd, len(maps))
    for at in range(0, len(maps), _HOLE_BYTES):
        # Where an increment holds nothing, which is nearly everywhere, its maps are holes.
        if any(piece := maps[at : at + _HOLE_BYTES]):
            write_whole(fd, memoryview(piece), at)
    at = len(maps)
    for part in digests:
        hasher.update(part)
        write_whole(fd, memoryview(part), at)
        at += len(part)
    assert at == len(maps) + data.count() * DIGEST_BYTES
    os.fsync(fd)
    return maps_blake3, hasher.hexdigest()


def damaged_table(path: Path) -> BackupDamagedError:
    return BackupDamagedError(f"{path} is not the table that was written; take another copy.", path=path)
