"""The digests of a backup while it is made: in a file by the number of their cell, until its table is written.

Rules
- The digests of an extent are in the file, and synced, before the journal says that the extent is done. What the
  journal has is their own digest, so that a file that was cut off is found out.
- One thread hashes; another asks for what it has hashed, and says when it was written.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import numpy as np
from blake3 import blake3

from snapfs.backups.layout import Names
from snapfs.backups.table import Digests
from snapfs.destination.access import NEW_MODE
from snapfs.destination.unfinished import open_left, sync_directory
from snapfs.destination.write_errors import write_errors
from snapfs.errors import SnapfsError
from snapfs.imager.extents import CELL_BYTES, Extent
from snapfs.imager.hashing import DIGEST_BYTES, CellHasher
from snapfs.whole import read_at_most, write_whole

_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class DigestsFile:
    """The file, open; the hashing of a backup."""

    def __init__(self, names: Names, *, resumes: bool, way_out: str) -> None:
        """A new one; with `resumes` the one that is there."""
        self._path, self._way_out = names.digests, way_out
        self._fd = _opened(names.digests, resumes)
        self._under_way: dict[int, tuple[Extent, CellHasher]] = {}

    def hasher(self, extent: Extent) -> CellHasher:
        hasher = CellHasher()
        self._under_way[extent.offset] = (extent, hasher)
        return hasher

    def written(self, extent: Extent) -> None:
        _, hasher = self._under_way.pop(extent.offset)
        with write_errors(str(self._path), self._way_out):
            write_whole(self._fd, memoryview(bytes(hasher.cells)), extent.offset // CELL_BYTES * DIGEST_BYTES)

    def of_piece(self, offset: int, length: int) -> Digests:
        """Of a piece of an extent that was hashed and is about to be written."""
        extent, hasher = next(one for one in list(self._under_way.values()) if one[0].offset <= offset < one[0].end)
        start = (offset - extent.offset) // CELL_BYTES * DIGEST_BYTES
        return _as_array(bytes(hasher.cells[start : start + -(-length // CELL_BYTES) * DIGEST_BYTES]))

    def of_cells(self, first: int, end: int) -> Digests:
        """Of cells in extents that were written; zeros where there is none."""
        buffer = bytearray((end - first) * DIGEST_BYTES)
        read_at_most(self._fd, memoryview(buffer), first * DIGEST_BYTES)
        return _as_array(bytes(buffer))

    def of_extent(self, extent: Extent) -> Digests:
        return self.of_cells(extent.offset // CELL_BYTES, -(-extent.end // CELL_BYTES))

    def has(self, extent: Extent, digest: bytes) -> bool:
        """Whether it has the digests of an extent of which the journal has this one."""
        return blake3(self.of_extent(extent).tobytes()).digest() == digest

    def sync(self) -> None:
        with write_errors(str(self._path), self._way_out):
            os.fdatasync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def _opened(path: Path, resumes: bool) -> int:
    with write_errors(str(path), "try again"):
        if not resumes:
            made = os.open(path, _NEW, NEW_MODE)
            # What comes after it is not known to be ours without it.
            sync_directory(path.parent)
            return made
        left = open_left(path, {os.geteuid()})
    if left is None:
        raise SnapfsError(f"There is nothing to resume: {path} does not exist; leave out --resume.", path=path)
    return left


def _as_array(data: bytes) -> Digests:
    return np.frombuffer(data, np.uint8).reshape(-1, DIGEST_BYTES)
