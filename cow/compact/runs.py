"""Runs: neighbouring blocks that will be one record, and where their content lies until then."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cow.disk.files import Data

# The first of some neighbouring blocks, and the index entries of all.
Piece = tuple[int, list[int]]


@dataclass(slots=True)
class Run:
    """Neighbouring blocks, and the index entries that say where they come from."""

    block_no: int
    entries: list[int]
    raw: Data = b""

    @property
    def end(self) -> int:
        """The block behind the last."""
        return self.block_no + len(self.entries)


def find_neighbours(tags: list[int], block_count: int) -> Iterator[tuple[int, int, int]]:
    """`(place in tags, first block, end)` for slots that follow each other and hold neighbouring blocks."""
    at = 0
    while at < len(tags):
        until = at + 1
        while until < len(tags) and tags[until] == tags[at] + until - at:
            until += 1
        if tags[at] < block_count:
            yield at, tags[at], min(tags[at] + until - at, block_count)
        at = until


def join(pieces: list[Piece], max_blocks: int) -> list[Run]:
    """Runs of neighbours, each of `max_blocks` at most, from pieces in order."""
    runs: list[Run] = []
    for first, entries in pieces:
        at = 0
        while at < len(entries):
            last = runs[-1] if runs else None
            if last and first + at == last.end and len(last.entries) < max_blocks:
                room = max_blocks - len(last.entries)
                last.entries += entries[at : at + room]
            else:
                room = max_blocks
                runs.append(Run(first + at, entries[at : at + room]))
            at += room
    return runs
