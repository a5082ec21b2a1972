"""Damage as disks and programs do it, to what a reader of maps reads: lost, misdirected, zeroed, exchanged, flipped.

A damage is a list of (offset, new bytes). The same dice give the same damage.
"""

from __future__ import annotations

import mmap
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from foreign_images import Reader

from snapfs.usedmap.source import Source

_SECTOR = 512
_EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\1\0\0\0")

Change = tuple[int, bytes]


class Patient:
    """An image in a private mapping, and what a reader reads of it."""

    def __init__(self, image: Path, older: Path | None = None, mirrors: tuple[int, ...] = ()) -> None:
        """`mirrors`: offsets of areas that are copies of each other, for damage that hit all of them."""
        self.content = _mapped(image)
        self._older = _mapped(older) if older else None
        self._mirrors = mirrors
        self._reads: set[tuple[int, int]] | None = None

    def preadv_into(self, buffer: memoryview, offset: int) -> int:
        part = self.content[offset : offset + len(buffer)]
        buffer[: len(part)] = part
        if self._reads is not None:
            self._reads.add((offset, len(part)))
        return len(part)

    def source(self) -> Source:
        return Source(self, len(self.content))

    def listen(self, reader: Reader) -> list[range]:
        """The places that the reader reads."""
        reads: set[tuple[int, int]] = set()
        self._reads = reads
        reader(self.source())
        self._reads = None
        return [range(offset, offset + length) for offset, length in sorted(reads) if length]

    def damage(self, places: list[range], dice: random.Random) -> list[Change]:
        changes = [change for _ in range(dice.choice((1, 1, 1, 2, 3))) for change in self._one(places, dice)]
        if self._mirrors and dice.random() < 0.5:
            changes += [mirrored for change in changes for mirrored in self._mirrored(change)]
        return changes

    def _one(self, places: list[range], dice: random.Random) -> list[Change]:
        # Small structures are hit as often as large tables.
        place = dice.choice(places) if dice.random() < 0.5 else dice.choices(places, [len(one) for one in places])[0]
        how = dice.choice(_KINDS)
        return how(self, places, dice.choice(place), dice)

    def _mirrored(self, change: Change) -> Iterator[Change]:
        offset, content = change
        first, second = self._mirrors[:2]
        if first <= offset < first + (second - first):
            for mirror in self._mirrors[1:]:
                yield offset - first + mirror, content

    @contextmanager
    def damaged(self, changes: list[Change]) -> Iterator[None]:
        undo = []
        try:
            for offset, content in changes:
                content = content[: len(self.content) - offset]
                undo.append((offset, self.content[offset : offset + len(content)]))
                self.content[offset : offset + len(content)] = content
            yield
        finally:
            for offset, content in reversed(undo):
                self.content[offset : offset + len(content)] = content

    # --- kinds of damage -----------------------------------------------------------------------------

    def flipped(self, _: list[range], at: int, dice: random.Random) -> list[Change]:
        return [(at, bytes([self.content[at] ^ 1 << dice.randrange(8)]))]

    def changed(self, _: list[range], at: int, dice: random.Random) -> list[Change]:
        return [(at, dice.randbytes(dice.choice((1, 1, 2, 4))))]

    def extreme(self, _: list[range], at: int, dice: random.Random) -> list[Change]:
        return [(at - at % 4, dice.choice(_EXTREMES))]

    def zeroed(self, _: list[range], at: int, dice: random.Random) -> list[Change]:
        length = dice.choice((1, 1, 2, 8, 32)) * _SECTOR
        return [(at - at % min(length, 4096), bytes([dice.choice((0, 0, 0, 0xFF))]) * length)]

    def scrambled(self, _: list[range], at: int, dice: random.Random) -> list[Change]:
        return [(at - at % _SECTOR, dice.randbytes(_SECTOR))]

    def bits_exchanged(self, _: list[range], at: int, dice: random.Random) -> list[Change]:
        """A bit that is set and one that is not, in one sector: every count stays right."""
        start = at - at % _SECTOR
        sector = bytearray(self._sector(start))
        ones = [bit for bit in range(len(sector) * 8) if sector[bit // 8] >> bit % 8 & 1]
        noughts = [bit for bit in range(len(sector) * 8) if not sector[bit // 8] >> bit % 8 & 1]
        if not ones or not noughts:
            return self.flipped(_, at, dice)
        for bit in (dice.choice(ones), dice.choice(noughts)):
            sector[bit // 8] ^= 1 << bit % 8
        return [(start, bytes(sector))]

    def bytes_exchanged(self, _: list[range], at: int, dice: random.Random) -> list[Change]:
        start, width = at - at % _SECTOR, dice.choice((1, 2, 4, 8, 64))
        sector = self._sector(start)
        first, second = (dice.randrange(_SECTOR // width) * width for _ in range(2))
        return [
            (start + first, sector[second : second + width]),
            (start + second, sector[first : first + width]),
        ]

    def misdirected(self, places: list[range], at: int, dice: random.Random) -> list[Change]:
        """A sector of another place was written here; sometimes they changed places."""
        other = dice.choice(dice.choice(places))
        here, there = at - at % _SECTOR, other - other % _SECTOR
        changes = [(here, self._sector(there))]
        return [*changes, (there, self._sector(here))] if dice.random() < 0.3 else changes

    def lost(self, _: list[range], at: int, dice: random.Random) -> list[Change]:
        """A write that never arrived: what stood there before."""
        if self._older is None:
            return self.scrambled(_, at, dice)
        length = dice.choice((1, 2, 8, 64)) * _SECTOR
        start = at - at % min(length, 4096)
        return [(start, self._older[start : start + length])]

    def _sector(self, start: int) -> bytes:
        return self.content[start : start + _SECTOR]


_Kind = Callable[[Patient, list[range], int, random.Random], list[Change]]
_KINDS: tuple[_Kind, ...] = (
    Patient.flipped,
    Patient.changed,
    Patient.extreme,
    Patient.zeroed,
    Patient.scrambled,
    Patient.bits_exchanged,
    Patient.bytes_exchanged,
    Patient.misdirected,
    Patient.lost,
)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
