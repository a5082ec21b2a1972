"""The files of segments: one directory of the store for all its cuts, a name by number and generation each."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cow.disk.layout import MAX_SEGMENT_NO

# No generation is as high.
NO_END = 1 << 63
_NAME = re.compile(r"(\d{8,})-(\d{8,})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Segments:
    """The segments of one cut: those of its own `generation`, and of later ones before `until`, which were merged
    into it or will be. With the store's seed."""

    directory: Path
    generation: int
    seed: int
    until: int = NO_END

    def path(self, segment_no: int) -> Path:
        """Where a segment of the cut's own is."""
        return self.directory / f"{segment_no:08d}-{self.generation:08d}"

    def find(self, segment_no: int) -> Path:
        """Where the segment is, whichever cut it comes from."""
        own = self.path(segment_no)
        if own.exists():
            return own
        found = present_segments(self.directory)
        return next(
            (path for number, generation, path in found if number == segment_no and self.has(generation)), own
        )

    def numbers(self) -> list[int]:
        """The numbers of all that are present, ascending."""
        return sorted(number for number, _, _ in self._present())

    def has(self, generation: int) -> bool:
        """Whether entries of this cut may name records of `generation`: what is being merged into it is named before
        it belongs to it."""
        return self.generation <= generation

    def _present(self) -> Iterator[tuple[int, int, Path]]:
        return (found for found in present_segments(self.directory) if self.generation <= found[1] < self.until)


def present_segments(directory: Path) -> list[tuple[int, int, Path]]:
    """Number, generation and path of every segment of a store; none when the directory is gone."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    found = [(int(name[1]), int(name[2]), directory / name[0]) for name in map(_NAME.fullmatch, names) if name]
    # Others are nobody's: no entry can name them.
    return [one for one in found if 0 < one[0] <= MAX_SEGMENT_NO]


def remove_segments_of(directory: Path, is_needless: Callable[[int], bool]) -> None:
    """Remove the segments of generations that nobody needs; what stays now is found the next time."""
    for _, generation, path in present_segments(directory):
        if is_needless(generation):
            with contextlib.suppress(OSError):
                path.unlink()


def first_unused(directory: Path) -> int:
    """A number above those of all segments that are there, whosever they are."""
    return max((number for number, _, _ in present_segments(directory)), default=0) + 1
