"""What a mapper found to be free, in a file: `free.found` in the directory of the cut, one bit a block, 1 for free.

Zeros are holes. It is taken over into the cut's map of free blocks, and removed. That there is a whole one is said by
`regions.json`, which is written after it (see `notes`).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bitarray import bitarray

from snapfs.whole import write_whole

FREE_NAME: Final = "free.found"
_PIECE_BYTES: Final = 1 << 20
_INVERTED: Final = bytes(0xFF ^ byte for byte in range(256))


def write_free(directory: Path, used: bitarray) -> None:
    """All that is not `used`."""
    view = memoryview(used)
    with (directory / FREE_NAME).open("wb") as file:
        for offset in range(0, len(view), _PIECE_BYTES):
            piece = view[offset : offset + _PIECE_BYTES].tobytes()
            if piece.count(0xFF) < len(piece):
                write_whole(file.fileno(), memoryview(piece.translate(_INVERTED)), offset)
        file.truncate(len(view))


@dataclass(frozen=True, slots=True)
class FreeRuns:
    """The runs of free blocks that the file in `directory` tells of, read anew each time they are gone through:
    millions of them would take hundreds of MiB. OSError: it does not tell of `block_count` blocks."""

    directory: Path
    block_count: int

    def __iter__(self) -> Iterator[tuple[int, int]]:
        path = self.directory / FREE_NAME
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size * 8 < self.block_count:
                raise OSError(errno.EIO, f"{path} is too short", os.fspath(path))
            for first in range(0, self.block_count, _PIECE_BYTES * 8):
                free = bitarray(endian="little")
                free.frombytes(file.read(_PIECE_BYTES))
                for start, stop in _runs(free, min(len(free), self.block_count - first)):
                    yield first + start, first + stop

    def remove(self) -> None:
        """They are taken over."""
        (self.directory / FREE_NAME).unlink()


def _runs(free: bitarray, end: int) -> Iterator[tuple[int, int]]:
    start = free.find(1, 0, end)
    while start >= 0:
        stop = free.find(0, start, end)
        stop = end if stop < 0 else stop
        yield start, stop
        start = free.find(1, stop, end)
