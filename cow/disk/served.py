"""Which blocks of a cut nobody needs who reads an older one: he has found them before he comes to it.

    R  H  H  cut    R: the nearest before it that has readers; H: hidden ones, which have none of their own
    s0 s1 s2        what is settled in any of these, R's readers do not look for in the cut

What is settled in R or later without a copy was served there, so what serves R serves all before it too. A cut that
is lost lets nobody read through it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cow.disk.bitmaps import Bitmap
from cow.disk.cut import Cut
from cow.disk.header import Header
from cow.disk.layout import CutCounter

# What a larger range is looked at in, so that memory stays bounded.
_PIECE_BLOCKS: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Preserved:
    """How many blocks a cut preserved and nobody has dropped, and how many of them no cut before it reads here."""

    blocks: int
    alone_blocks: int


class Served:
    """What is settled in any of `maps`; without one there is no such reader, and so every block."""

    def __init__(self, maps: Sequence[Bitmap] = ()) -> None:
        self._maps = maps

    @property
    def is_all(self) -> bool:
        """Whether nobody reads an older cut."""
        return not self._maps

    def all_set(self, first: int, end: int) -> bool:
        return not self._maps or all(is_set for is_set, *_ in self.runs(first, end))

    def runs(self, first: int, end: int) -> Iterator[tuple[bool, int, int]]:
        """`(is served, first, end)` for all of the range."""
        if not self._maps:
            yield True, first, end
            return
        maps = iter(self._maps)
        if len(self._maps) == 1:
            yield from next(maps).runs(first, end)
            return
        bits = next(maps).slice(first, end)
        for more in maps:
            bits |= more.slice(first, end)
        start, count = 0, end - first
        while start < count:
            stop = bits.find(not bits[start], start)
            stop = count if stop < 0 else stop
            yield bool(bits[start]), first + start, first + stop
            start = stop


def served_before(header: Header, cuts: Sequence[Cut]) -> Served:
    """For the cut behind `cuts`, those before it in the list, or the last of them as far as `looked_through`
    goes. One that the header names no more has no readers."""
    maps: list[Bitmap] = []
    for cut in reversed(cuts):
        if not cut.numbers.is_kept:
            break
        maps.append(cut.settled)
        facts = header.cut_of(cut.generation)
        if facts is not None and not facts.is_hidden:
            return Served(maps)
    return Served()


def is_read(header: Header, cuts: Sequence[Cut]) -> bool:
    """Whether anybody reads the last of `cuts`, which are those of the list up to it: its own readers, or those of an
    older one. The records of a cut that is read by none may be gone before the cut is."""
    *before, cut = cuts
    facts = header.cut_of(cut.generation)
    return (facts is not None and not facts.is_hidden) or not served_before(header, before).is_all


def looked_through(header: Header, generation: int) -> list[int]:
    """The generations before that one, in order, of which `served_before` needs the cuts."""
    found: list[int] = []
    for facts in reversed([one for one in header.cuts if one.generation < generation]):
        found.insert(0, facts.generation)
        if not facts.is_hidden:
            break
    return found


def count_preserved(cut: Cut, served: Served) -> Preserved:
    """`served`: what of it no older reader needs. About right while maps change."""
    blocks = alone_blocks = 0
    free_counts = cut.numbers[CutCounter.FREE_BLOCKS] > 0
    for offset, length in cut.settled.file.data_ranges():
        stop = min((offset + length) * 8, cut.settled.block_count)
        for first in range(offset * 8, stop, _PIECE_BLOCKS):
            end = min(first + _PIECE_BLOCKS, stop)
            settled = cut.settled.slice(first, end) & ~cut.released.slice(first, end)
            if free_counts:
                settled &= ~cut.free.slice(first, end)
            blocks += settled.count()
            runs = ((low - first, high - first) for is_served, low, high in served.runs(first, end) if is_served)
            alone_blocks += sum(settled.count(1, *run) for run in runs)
    return Preserved(blocks, alone_blocks)
