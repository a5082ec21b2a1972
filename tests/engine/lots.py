"""Writes that can be told again by anybody who knows their seed: so a process knows what a snapshot must hold when
it knows how many of them were before it.

The image is dealt out in lots of some sectors each, in turn, to several authors: blocks belong to more than one of
them, sectors to one alone.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from typing import Final

SECTOR_BYTES: Final = 512
_SECTOR: Final = struct.Struct("<QQ")
_MOST_SECTORS: Final = 40
# A write across a multiple of this may be split, and a cut come in between.
_WHOLE_SECTORS: Final = 128


def _sectors(first: int, count: int, version: int) -> bytes:
    """Each says which it is, and the number of the write that it comes from."""
    times = SECTOR_BYTES // _SECTOR.size
    return b"".join(_SECTOR.pack(number, version) * times for number in range(first, first + count))


def untouched(image_bytes: int) -> bytes:
    """What the image holds before the first write; it may end within a sector."""
    return _sectors(0, -(-image_bytes // SECTOR_BYTES), 0)[:image_bytes]


def _dealt(dice: random.Random, image_bytes: int) -> list[tuple[int, int]]:
    """First sector and number of sectors of each lot; what is left over at the end is never written."""
    lots, first = [], 0
    while first + _MOST_SECTORS <= image_bytes // SECTOR_BYTES:
        count = min(dice.choice([1, 3, 8, _MOST_SECTORS]), _WHOLE_SECTORS - first % _WHOLE_SECTORS)
        lots.append((first, count))
        first += count
    return lots


class Author:
    """Number `number` of `count`: `next` is its next write, `told` how many there were."""

    def __init__(self, seed: int, image_bytes: int, number: int, count: int) -> None:
        self._lots = _dealt(random.Random(seed), image_bytes)[number::count]
        self._dice = random.Random(seed * 64 + number)
        self.told = 0

    def next(self) -> tuple[int, bytes]:
        """Offset and bytes; zeros are a discard."""
        self.told += 1
        first, count = self._dice.choice(self._lots)
        skip = self._dice.choice([0, 0, self._dice.randrange(count)])
        data = _sectors(first + skip, count - skip, self.told)
        return (first + skip) * SECTOR_BYTES, bytes(len(data)) if self._dice.random() < 0.25 else data


class Retelling:
    """The image after a number of writes of each author, for numbers that only grow."""

    def __init__(self, seed: int, image_bytes: int, count: int) -> None:
        self._authors = [Author(seed, image_bytes, number, count) for number in range(count)]
        self._image = bytearray(untouched(image_bytes))

    def after(self, told: Sequence[int]) -> bytes:
        """`told`: how many writes of each."""
        for author, until in zip(self._authors, told, strict=True):
            while author.told < until:
                offset, data = author.next()
                self._image[offset : offset + len(data)] = data
        return bytes(self._image)
