"""What was written to the image since a checkpoint, a cut that somebody holds: what it and all cuts after it noted.

Each cut notes every write until the next one in `changed`, before the image changes, as long as it is kept; one that
is merged passes its bits on to the one before it. So the union is all that can differ, if none of these cuts was
lost: else something may have been missed, and the checkpoint is *void*.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from bitarray import bitarray
from bitarray.util import zeros

from cow.disk.bitmaps import Bitmap
from cow.disk.cut import Cut
from cow.disk.header import CutHeader, Header
from cow.disk.layout import CutCounter, State, unpack_missing
from cow.geometry import Geometry

# What is looked at in one go, so that memory stays bounded.
_PIECE_BLOCKS = 1 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A cut that is held. `void`: why something may be missing in `changed_bytes`, which are all since it."""

    facts: CutHeader
    changed_bytes: int
    void: State | None


def why_void(cuts: Sequence[Cut]) -> State | None:
    """Whether any write may be missing in what `cuts` have noted, and what became of the first that missed some. To
    be asked after looking at what they noted."""
    for cut in cuts:
        if not cut.numbers.is_kept:
            state = cut.numbers.state
            return State.DAMAGED if state is State.ACTIVE else state
        # What the image lost when it was cut short, nobody has written.
        if not cut.changed.file.is_whole or unpack_missing(cut.numbers[CutCounter.MISSING_BYTES]):
            return State.DAMAGED
    return None


def changed_in(cuts: Sequence[Cut], block_count: int) -> bitarray:
    """Which blocks were written to in the time of any of them; nothing of it counts if they are void."""
    changed = zeros(block_count, "little")
    for first, end in _pieces([cut.changed for cut in cuts]):
        for cut in cuts:
            changed[first:end] |= cut.changed.slice(first, end)
    return changed


def checkpoints_of(header: Header, cuts: Sequence[Cut], geometry: Geometry) -> list[Checkpoint]:
    """Those that the header names, oldest first; `cuts` are all of its cuts."""
    facts_of = {facts.generation: facts for facts in header.cuts if facts.holders}
    places = [place for place, cut in enumerate(cuts) if cut.generation in facts_of]
    if not places:
        return []
    changed_bytes = _changed_bytes(cuts, places, geometry)
    return [
        Checkpoint(facts_of[cuts[place].generation], changed_bytes[place], why_void(cuts[place:])) for place in places
    ]


def _changed_bytes(cuts: Sequence[Cut], places: Sequence[int], geometry: Geometry) -> dict[int, int]:
    """By place in the list: what was written since that cut."""
    found = dict.fromkeys(places, 0)
    last = geometry.block_count - 1
    short_bytes = geometry.block_bytes - geometry.extent(last, last + 1)[1]
    for first, end in _pieces([cut.changed for cut in cuts[places[0] :]]):
        changed = zeros(end - first, "little")
        for place in range(len(cuts) - 1, places[0] - 1, -1):
            changed |= cuts[place].changed.slice(first, end)
            if place in found:
                found[place] += changed.count() * geometry.block_bytes
                found[place] -= short_bytes if end > last and changed[-1] else 0
    return found


def _pieces(maps: Sequence[Bitmap]) -> Iterator[tuple[int, int]]:
    """The blocks of which any map may have anything; most of a large one is a hole."""
    borders: set[int] = set()
    data: list[tuple[int, int]] = []
    for bitmap in maps:
        for offset, length in bitmap.file.data_ranges():
            first, end = offset * 8, min((offset + length) * 8, bitmap.block_count)
            data.append((first, end))
            borders |= {first, end, *range(first - first % _PIECE_BLOCKS + _PIECE_BLOCKS, end, _PIECE_BLOCKS)}
    data.sort()
    reach, at = 0, 0
    for first, end in pairwise(sorted(borders)):
        while at < len(data) and data[at][0] <= first:
            reach, at = max(reach, data[at][1]), at + 1
        if reach > first:
            yield first, end
