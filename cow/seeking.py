"""What of a snapshot is a hole: where a read gives zeros, now and at any later time, and nothing is to be read.

    free blocks, once the map is known            read as zeros for good
    holes of the image, in blocks that are owed   a write preserves them as they are first
    what was preserved as zeros                   so it stays

Never anything else; all other blocks are data, zeros or not. Which blocks have their content where is found out as
by a read, in the same order: the image is asked, then who has settled the block, then whether there is a later cut.
A live write settles before it reaches the image, so what nobody has settled by then was a hole at the cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cow.disk.blocks import Kind, Run
from cow.disk.layout import RECORD, CutCounter, unpack_missing, unpack_place
from cow.errors import BlockReleased, Damaged, WouldWait
from cow.frozen import NOWHERE, UNCLEAR
from cow.holes import Range, clipped, next_data, next_hole
from cow.preserved import PreservedReader
from cow.snapshot import LongerList, SnapshotReader

_FREE: Final = Kind.FREE
_OWED: Final = Kind.OWED
_STAGED: Final = Kind.STAGED
_STORED: Final = Kind.STORED
_MISSING_BYTES: Final = CutCounter.MISSING_BYTES.value
# What is looked at in the event loop: 8 MiB of blocks of 4 KiB.
_FEW_BLOCKS: Final = 2048
# What is looked at first, where the next data or hole may be the next block, and at once at most.
_FIRST_BYTES: Final = 1 << 16
_MOST_BYTES: Final = 1 << 28
_MOST_BLOCKS: Final = 1 << 16
# A record of zeros is no longer: 64 KiB compress to 270 bytes. Only what may be one is read.
_ZEROS_RECORD_BYTES: Final = RECORD.size + 320


class SeekingReader(SnapshotReader):
    """A reader that knows holes as well."""

    def seek(self, offset: int, stop: int, *, for_hole: bool) -> int | None:
        """Where the next hole, or data, from `offset` on is; `stop` or None as `next_hole` and `next_data` say.

        Damaged, SnapshotLost, SnapshotEnded: as for `read_into`. May wait for the disk.
        """
        holes = self._holes(offset, stop)
        return next_hole(holes, offset, stop) if for_hole else next_data(holes, offset, stop)

    def try_seek(self, offset: int, stop: int, *, for_hole: bool) -> tuple[bool, int | None]:
        """The same for a part of the range, if the disk need not be waited for: whether that is the answer."""
        few_bytes = _FEW_BLOCKS * self.geometry.block_bytes
        until = min(stop, (offset // few_bytes + 1) * few_bytes)
        self._desk.may_wait = False
        try:
            found = self.seek(offset, until, for_hole=for_hole)
        except WouldWait:
            return False, None
        finally:
            self._desk.may_wait = True
        is_found = until == stop or (found is not None and found < until)
        return is_found, found

    def _holes(self, offset: int, stop: int) -> Iterator[Range]:
        """Looked for as far as they are asked for, in larger and larger pieces: all holes of a piece are found, and
        of a fragmented image whoever copies it asks for each."""
        block_bytes = self.geometry.block_bytes
        step, most = max(_FIRST_BYTES, block_bytes), min(_MOST_BYTES, _MOST_BLOCKS * block_bytes)
        while offset < stop:
            until = min(stop, (offset // step + 1) * step)
            yield from self._holes_in(offset, until)
            offset, step = until, min(step * 4, most)

    def _holes_in(self, offset: int, stop: int) -> Iterator[Range]:
        first, end = self.geometry.span(offset, stop - offset)
        self._looks_through = False
        while True:
            found: list[Range] = []
            would_wait = False
            try:
                for one in clipped(self._holes_of(first, end), offset, stop):
                    found.append(one)
            except LongerList:
                continue
            except WouldWait:
                would_wait = True
            if self._frozen.is_still_so():
                break
        self.check()
        yield from found
        # Only for what comes behind these, which may be of no interest.
        if would_wait:
            raise WouldWait

    def _holes_of(self, first: int, end: int) -> Iterator[Range]:
        for run in self._own.explain(first, end):
            if run[0] is _FREE:
                yield self._range(run[1], run[2])
            elif run[0] is not _OWED:
                yield from self._preserved_zeros(self._own, run)
            else:
                found = list(self._holes_behind(run[1], run[2]))
                # Last. What the image lost while the cut owed it may be zeros now, there and in later cuts.
                yield from clipped(found, 0, self._whole_bytes(self._own))

    def _holes_behind(self, first: int, end: int) -> Iterator[Range]:
        """What the cut itself does not have: in those after it."""
        if len(self._links) == 1:
            yield from self._holes_of_image(first, end)
            return
        for place, low, high in self._frozen.runs(first, end):
            if place == NOWHERE:
                for run in self._links[-1].explain(low, high):
                    if run[0] is _OWED:
                        yield from self._holes_of_image(run[1], run[2])
                    else:
                        yield from self._preserved_zeros(self._links[-1], run)
            elif place != UNCLEAR:
                for run in self._links[place].explain(low, high):
                    yield from self._preserved_zeros(self._links[place], run)

    def _preserved_zeros(self, link: PreservedReader, run: Run) -> Iterator[Range]:
        kind, first, end, entry = run
        if kind is not _STAGED and (kind is not _STORED or unpack_place(entry).length > _ZEROS_RECORD_BYTES):
            return
        # Of whoever waits for nothing: to read one takes little, but there may be many.
        if not self._desk.may_wait:
            raise WouldWait
        parts = [run]
        if kind is _STAGED:
            parts = [(kind, block_no, block_no + 1, entry + block_no - first) for block_no in range(first, end)]
        yield from (self._range(one[1], one[2]) for one in parts if self._is_zeros(link, one))

    def _is_zeros(self, link: PreservedReader, run: Run) -> bool:
        offset, length = self.geometry.extent(run[1], run[2])
        content = bytearray(length)
        try:
            link.read(memoryview(content), offset, run)
        except (BlockReleased, Damaged, OSError):
            # Who reads it is told; or it has moved, and is taken for data this time.
            return False
        return content == bytes(length)

    def _holes_of_image(self, first: int, end: int) -> list[Range]:
        """What nobody has settled."""
        if not self._desk.may_wait:
            raise WouldWait
        newest = self._links[-1]
        found = list(self._image.holes(*self._range(first, end)))
        if not found:
            return []
        # In this order: see the module's docstring.
        owed = newest.cut.settled.clear_runs(first, end)
        self._check_newest()
        if not newest.numbers.is_kept:
            return []
        there = self._whole_bytes(newest)
        runs = [self._range(*run) for run in owed]
        return [one for low, high in runs for one in clipped(found, low, min(high, there))]

    def _whole_bytes(self, link: PreservedReader) -> int:
        """As far as the image was not cut short while that cut was the newest."""
        return self.geometry.image_bytes - unpack_missing(link.numbers[_MISSING_BYTES])

    def _range(self, first: int, end: int) -> Range:
        offset, length = self.geometry.extent(first, end)
        return offset, offset + length
