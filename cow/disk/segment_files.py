"""The files of segments: one directory of the store for all its cuts, a name by number and generation each."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cow.disk.layout import MAX_SEGMENT_NO
from cow.disk.plain import open_plain

# No generation is as high.
NO_END = 1 << 63
# Of each cut one is appended to and a few are read at once; more cuts than this are seldom looked through.
_MOST_OPEN = 128
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


class OpenSegment:
    """A file of a segment; closed when nobody has it any more."""

    __slots__ = ("fd",)

    def __init__(self, path: Path) -> None:
        self.fd = -1
        self.fd = open_plain(path, os.O_RDONLY)

    @property
    def is_removed(self) -> bool:
        return not os.fstat(self.fd).st_nlink

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class OpenSegments:
    """The segments of a store that are open for readers: those that were used last, whoever reads which cut, for
    their numbers are the store's. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[int, OpenSegment] = OrderedDict()

    def of(self, segments: Segments, segment_no: int) -> OpenSegment:
        """To be let go soon. OSError: it is not there, or no plain file."""
        with self._lock:
            opened = self._open.get(segment_no)
            if opened is not None:
                self._open.move_to_end(segment_no)
                return opened
        # Without the lock: it may wait for the disk.
        opened = OpenSegment(segments.find(segment_no))
        with self._lock:
            # One that was squeezed or given back keeps its space on disk as long as it is open somewhere.
            for old_no in [old_no for old_no, old in self._open.items() if old.is_removed]:
                del self._open[old_no]
            opened = self._open.setdefault(segment_no, opened)
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)
        return opened

    def close(self) -> None:
        """All that nobody reads at this moment, and those when he has; a read opens what it needs."""
        with self._lock:
            self._open.clear()


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
