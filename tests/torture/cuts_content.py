"""What the writers of the campaign of cuts write, and in what order: all of it follows from a seed.

Each writer has blocks of its own, and its writes have numbers from 1 on. What a write covers and what a block holds
after it can be computed by anybody (`Sequence`, `contents`), so a snapshot proves itself: the first bytes of a block
name the write that it is from, and all its bytes must be those of that one.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

BLOCK: Final = 4096
MAGIC: Final = 0x74756373  # "scut"
HEAD: Final = np.dtype([("magic", "<u4"), ("writer", "<u4"), ("number", "<u8"), ("block", "<u8")])
_TAIL: Final = np.dtype("<u8")
_ROWS: Final = 64
_MASK: Final = (1 << 64) - 1
_LENGTHS: Final = (1, 1, 1, 1, 2, 4, 8, 16)
MAX_LENGTH: Final = max(_LENGTHS)


def _mixed(value: int) -> int:
    """Splitmix64: any number from any number."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _MASK
    return value ^ value >> 31


def _pool() -> Any:
    """Rows of bytes that compress to about a half."""
    rows = np.random.default_rng(1).integers(0, 256, (_ROWS, BLOCK), np.uint8)
    rows[:, BLOCK // 2 :] = rows[:, :1]
    return rows


_POOL: Final = _pool()


def contents(writer: int, numbers: Any, blocks: Any) -> Any:
    """The bytes of `blocks` after the writes `numbers` (arrays of one length): an array of rows."""
    numbers, blocks = np.asarray(numbers, np.uint64), np.asarray(blocks, np.uint64)
    mark = numbers * np.uint64(0x9E3779B97F4A7C15) ^ blocks * np.uint64(0xBF58476D1CE4E5B9)
    rows = _POOL[mark >> np.uint64(32) & np.uint64(_ROWS - 1)]
    head = rows[:, : HEAD.itemsize].view(HEAD)
    head["magic"], head["writer"] = MAGIC, writer
    head["number"], head["block"] = numbers[:, None], blocks[:, None]
    rows[:, BLOCK - _TAIL.itemsize :].view(_TAIL)[:] = mark[:, None]
    return rows


@dataclass(frozen=True)
class Sequence:
    """The writes of one writer, who has `count` blocks from `first` on."""

    seed: int
    writer: int
    first: int
    count: int

    def place(self, number: int) -> tuple[int, int]:
        """The blocks of one write: from, to."""
        drawn = _mixed(_mixed(self.seed << 8 | self.writer) ^ number)
        length = _LENGTHS[drawn & 7]
        first = self.first + (drawn >> 8) % (self.count - length + 1)
        return first, first + length


def sequences(seed: int, writer_count: int, block_count: int) -> list[Sequence]:
    """Of all writers: the image in parts of one size."""
    share = block_count // writer_count
    return [Sequence(seed, writer, writer * share, share) for writer in range(writer_count)]


def is_buffered(writer: int) -> bool:
    """Whether a writer goes through the page cache: then only the order of its syncs is kept. The last of four."""
    return writer % 4 == 3


class Progress:
    """How far each writer is, in a file that all processes of the campaign have mapped. Writer `n` alone stores
    its numbers, the campaign the limits.

    A writer stores `tried` before a write and `done` after it, so whoever looks at `done`, has a cut taken and
    looks at `tried` knows what the cut can hold. At its limit a writer syncs first, and then rests.
    """

    def __init__(self, path: Path, writer_count: int) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, mmap.PAGESIZE)
            numbers = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("Q")
        finally:
            os.close(fd)
        self.tried, self.done, self.limit, self.rests = (
            numbers[at * writer_count : (at + 1) * writer_count] for at in range(4)
        )

    def set_limits(self, limits: list[int] | None) -> None:
        """No write after that one, of each writer; None: all go on."""
        for writer in range(len(self.limit)):
            self.limit[writer] = limits[writer] if limits is not None else _MASK
