"""A raw backup that is brought up to date where it is: which of its cells may be other than the source.

    known       by what was written since its cut: those, and what has become used or free, and what could not be read
    compared    nobody knows: all is read, and extents whose digest is not that of the manifest are taken
    unknown     nor does anybody know what is in the backup: all of it, compared with what is there

In each case what has become free, or a hole, since, and what an interrupted update may have written. Of an extent in
which any cell is taken all is read, for its digest; only those cells are written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from bitarray import bitarray
from bitarray.util import intervals, ones, zeros

from snapfs.imager.backup import Plan
from snapfs.imager.extents import CELL_BYTES, Extent, cell_count, cells_of, plan
from snapfs.imager.journal import Done
from snapfs.imager.manifest import Manifest
from snapfs.imager.pace import Pace
from snapfs.imager.progress import Meter, Report
from snapfs.imager.source import Source
from snapfs.imager.stages import PIECE_BYTES, Stages
from snapfs.imager.target import FileTarget
from snapfs.imager.unread import Ranges, Salvager


@dataclass(frozen=True)
class Update:
    """What is to be done. `cells` has a bit for each that may be written; with `compares` only where it differs."""

    plan: Plan
    cells: bitarray
    compares: bool
    # What was read already, to find this out.
    compared_bytes: int = 0


def known(source: Source, manifest: Manifest, suspected: bitarray, half: bitarray) -> Update:
    """`suspected` are the cells that may read otherwise than then, `half` those of an interrupted update."""
    count = len(suspected)
    cells = suspected | half | cells_of(manifest.unread, count)
    # What was zeros and is not suspected still is, though a filesystem may call it data for a while.
    holes = cells_of(((one.extent.offset, one.extent.length) for one in manifest.extents if not one.digest), count)
    holes &= ~cells
    if (found := source.holes()) is not None:
        holes |= found
    extents = plan(source.used, source.block_bytes, source.size_bytes, holes)
    done = {
        index: Done(digest) for index, digest in _same_extents(extents, manifest) if not _any(cells, extents[index])
    }
    return Update(Plan(extents, done), cells | _now_zeros(extents, manifest), compares=False)


def compared(
    source: Source, manifest: Manifest, half: bitarray, report: Report, rate_bytes_per_s: int | None, *, skips: bool
) -> Update:
    """Reads all of the source but for what is taken anyway."""
    extents = source.extents()
    cells = half | cells_of(manifest.unread, len(half))
    found = _Compared(source, skips=skips)
    to_read = [
        (index, extents[index]) for index, _ in _same_extents(extents, manifest) if not _any(cells, extents[index])
    ]
    digests = found.run(to_read, report, Pace(rate_bytes_per_s))
    done = {}
    for index, digest in _same_extents(extents, manifest):
        if digests.get(index) == digest:
            done[index] = Done(digest)
    for index, extent in enumerate(extents):
        if index not in done and not extent.is_zeros:
            cells[extent.offset // CELL_BYTES : -(-extent.end // CELL_BYTES)] = 1
    compared_bytes = sum(extent.length for _, extent in to_read)
    return Update(
        Plan(extents, done), cells | _now_zeros(extents, manifest), compares=True, compared_bytes=compared_bytes
    )


def unknown(source: Source) -> Update:
    """Reads nothing yet."""
    return Update(Plan(source.extents(), {}), ones(cell_count(source.size_bytes), "little"), compares=True)


class UpdateTarget:
    """The backup, as the target of what has changed; closes nothing."""

    is_durable = True

    def __init__(self, file: FileTarget, update: Update) -> None:
        self.name = file.name
        self.written_bytes = 0
        self._file, self._cells, self._compares = file, update.cells, update.compares
        self._there = memoryview(bytearray(PIECE_BYTES if update.compares else 0))

    def write(self, view: memoryview, offset: int) -> None:
        for start, stop in self._wanted(view, offset):
            self._file.write(view[start:stop], offset + start)
            self.written_bytes += stop - start

    def write_zeros(self, offset: int, length: int) -> None:
        """What is zeros now, where that may be new."""
        first, end = offset // CELL_BYTES, -(-(offset + length) // CELL_BYTES)
        for start, stop in _runs(self._cells[first:end], length):
            self._file.write_zeros(offset + start, stop - start)

    def sync(self) -> None:
        self._file.sync()

    def finish(self) -> None:
        self._file.finish()

    def close(self) -> None:
        self._file.close()

    def _wanted(self, view: memoryview, offset: int) -> Iterator[tuple[int, int]]:
        first = offset // CELL_BYTES
        cells = self._cells[first : first - (-len(view) // CELL_BYTES)]
        if self._compares and cells.any():
            there = self._there[: len(view)]
            self._file.read_into(there, offset)
            cells &= _differing(view, there)
        yield from _runs(cells, len(view))


@dataclass
class _Compared:
    """Reads extents for their digests alone."""

    source: Source
    skips: bool
    digests: dict[int, bytes] = field(default_factory=dict)

    def run(self, extents: Sequence[tuple[int, Extent]], report: Report, pace: Pace) -> dict[int, bytes]:
        """Of all that could be read whole."""
        salvager = Salvager(self.source, Ranges()) if self.skips else None
        meter = Meter("backup", sum(extent.length for _, extent in extents), report, self.source.buffer_bytes)
        stages = Stages(
            salvager.read_into if salvager else self.source.read_into,
            lambda view, offset: None,
            self.digests.__setitem__,
            meter.advance,
            pace,
            announce=None if salvager else self.source.will_read,
        )
        stages.run(extents)
        self.source.check()
        meter.finish()
        if salvager:
            for index, extent in extents:
                if salvager.unread_in(extent.offset, extent.length):
                    del self.digests[index]
        return self.digests


def _same_extents(extents: Sequence[Extent], manifest: Manifest) -> Iterator[tuple[int, bytes]]:
    """Index of each that the manifest has as well, and the digest there."""
    digests = {(one.extent.offset, one.extent.length): one.digest for one in manifest.extents}
    for index, extent in enumerate(extents):
        digest = digests.get((extent.offset, extent.length))
        if digest is not None and not extent.is_zeros:
            yield index, digest


def _now_zeros(extents: Sequence[Extent], manifest: Manifest) -> bitarray:
    """Cells that hold data by the manifest, and are free or a hole now."""
    count = cell_count(manifest.image_bytes)
    was = cells_of(((one.extent.offset, one.extent.length) for one in manifest.extents if one.digest), count)
    now = cells_of(((extent.offset, extent.length) for extent in extents if not extent.is_zeros), count)
    return was & ~now


def _any(cells: bitarray, extent: Extent) -> bool:
    return cells[extent.offset // CELL_BYTES : -(-extent.end // CELL_BYTES)].any()


def _runs(cells: bitarray, length: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the cells that are set in a piece of `length` bytes."""
    for value, first, end in intervals(cells):
        if value:
            yield first * CELL_BYTES, min(end * CELL_BYTES, length)


def _differing(view: memoryview, there: memoryview) -> bitarray:
    """A bit per cell of a piece: whether the two are not the same."""
    cells = zeros(-(-len(view) // CELL_BYTES), "little")
    whole = len(view) // CELL_BYTES
    words = whole * CELL_BYTES // 8
    mine = np.frombuffer(view, np.uint64, words).reshape(whole, CELL_BYTES // 8)
    theirs = np.frombuffer(there, np.uint64, words).reshape(whole, CELL_BYTES // 8)
    for index in np.flatnonzero((mine != theirs).any(axis=1)).tolist():
        cells[index] = 1
    if whole < len(cells):
        cells[whole] = view[whole * CELL_BYTES :] != there[whole * CELL_BYTES :]
    return cells
