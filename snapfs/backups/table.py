"""NAME.cells: which cells of the image a backup holds, as data or as zeros, and the digest of each that is data.

Rules
- A cell that holds nothing but zeros is never held as data.
- The maps are checked when a table is opened, the digests only where all of it is (`check_whole`): a wrong digest
  makes a backup larger, or says of good data that they are bad, but never the other way round.
- No object a cell: a TiB has 16 million.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from functools import cached_property
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
from snapfs.whole import write_whole

Digests = np.ndarray[tuple[int, int], np.dtype[np.uint8]]
# So many cells have one sum of what is before them.
_SPAN: Final = 4096
_COUNTS: Final = np.array([value.bit_count() for value in range(256)], np.int64)


class Table:
    """One table, open. `data` and `zeros` have a bit per cell."""

    def __init__(self, path: Path, image_bytes: int, maps_blake3: str) -> None:
        """BackupDamagedError: it is not the one with these maps."""
        self.path, self.image_bytes = path, image_bytes
        self._map = _mapped(path)
        try:
            self._parse(maps_blake3)
        except BaseException:
            self.close()
            raise

    def _parse(self, maps_blake3: str) -> None:
        count = cell_count(self.image_bytes)
        map_bytes = -(-count // 8)
        self._digests_at = CELLS_HEADER.size + 2 * map_bytes
        if len(self._map) < self._digests_at:
            raise damaged_table(self.path)
        head = self._map[: self._digests_at]
        facts = CELLS_HEADER.unpack_from(head)
        if (
            facts[:4] != (CELLS_MAGIC, VERSION, CELL_BYTES, self.image_bytes)
            or blake3(head).hexdigest() != maps_blake3
        ):
            raise damaged_table(self.path)
        self.data, self.zeros = (_bits(head[at : at + map_bytes], count) for at in self._places(map_bytes))
        if facts[4:] != (self.data.count(), self.zeros.count()):
            raise damaged_table(self.path)
        if len(self._map) != self._digests_at + facts[4] * DIGEST_BYTES:
            raise damaged_table(self.path)

    @staticmethod
    def _places(map_bytes: int) -> tuple[int, int]:
        return CELLS_HEADER.size, CELLS_HEADER.size + map_bytes

    def check_whole(self, whole_blake3: str) -> None:
        """BackupDamagedError when anything in it is not what was written."""
        if blake3(self._map).hexdigest() != whole_blake3:
            raise damaged_table(self.path)

    def digests(self, first: int, end: int) -> tuple[Digests, bitarray]:
        """Of the cells in the range that are data, in order; and which these are."""
        held = self.data[first:end]
        rank, count = self._rank(first), held.count()
        start = self._digests_at + rank * DIGEST_BYTES
        found = np.frombuffer(self._map[start : start + count * DIGEST_BYTES], np.uint8)
        return found.reshape(count, DIGEST_BYTES), held

    def _rank(self, cell: int) -> int:
        """How many cells before this one are data."""
        span = cell // _SPAN
        return int(self._sums[span]) + self.data.count(1, span * _SPAN, cell)

    @cached_property
    def _sums(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        packed = np.frombuffer(self.data.tobytes(), np.uint8)
        padded = np.zeros(-(-len(packed) // (_SPAN // 8)) * (_SPAN // 8), np.uint8)
        padded[: len(packed)] = packed
        spans = _COUNTS[padded].reshape(-1, _SPAN // 8).sum(axis=1)
        return np.concatenate(([0], np.cumsum(spans)))

    def close(self) -> None:
        self._map.close()


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
        raise SnapfsError(f"{path} cannot be read: {error.strerror}; check the disk it is on.", path=path) from error


def write_table(
    fd: int, image_bytes: int, data: bitarray, zeros: bitarray, digests: Iterator[bytes]
) -> tuple[str, str]:
    """Write one into an empty file, with the digests of its `data` in order. The BLAKE3 of its maps, and of all."""
    head = CELLS_HEADER.pack(CELLS_MAGIC, VERSION, CELL_BYTES, image_bytes, data.count(), zeros.count())
    maps = head + data.tobytes() + zeros.tobytes()
    hasher = blake3(maps)
    maps_blake3 = hasher.hexdigest()
    write_whole(fd, memoryview(maps), 0)
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


def _mapped(path: Path) -> mmap.mmap:
    with reading(path):
        fd = open_readable(path, "name a directory of backups", flags=os.O_NOFOLLOW)
        try:
            if not os.fstat(fd).st_size:
                raise damaged_table(path)
            return mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        finally:
            os.close(fd)


def _bits(data: bytes, count: int) -> bitarray:
    bits = bitarray(endian="little")
    bits.frombytes(data)
    del bits[count:]
    return bits
