"""The qcow2 of a backup while it is made: only cells that are not in the chain below as they are now.

    digest of a cell    as in the chain    nothing
                        of data            written
                        of zeros           zeros, which hide what the chain has

Rules
- Whole cells only, which are clusters of the file: nothing is read from below to complete one.
- Where an interrupted run has written already, also what is as in the chain is written: that run may have seen other
  bytes there, of a sector that could be read once and not again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
from bitarray import bitarray

from snapfs.backups.digests import DigestsFile
from snapfs.backups.overlay import Overlay, positions
from snapfs.errors import SnapfsError
from snapfs.imager.extents import CELL_BYTES, Extent
from snapfs.imager.qcow2 import Qcow2Target
from snapfs.imager.qcow2_map import Held

_NOTHING, _DATA, _ZEROS = 0, 1, 2


class LinkTarget:
    """The target of a backup in a chain, over its file and what is below it."""

    is_durable = True

    def __init__(self, file: Qcow2Target, digests: DigestsFile, overlay: Overlay, present: Held | None) -> None:
        """`present`: what an interrupted run has written; closes `file`."""
        self.name = file.name
        self._file, self._digests, self._overlay = file, digests, overlay
        self._present: bitarray | None = None if present is None else present.data | present.zeros

    def hide(self, extents: Iterable[Extent]) -> None:
        """Zeros, whatever the chain has there."""
        for extent in extents:
            self._file.hide(extent.offset, extent.length)

    def write(self, view: memoryview, offset: int) -> None:
        for start, stop, kind in _runs(self._kinds(offset, len(view))):
            first, end = start * CELL_BYTES, min(stop * CELL_BYTES, len(view))
            if kind == _DATA:
                self._file.write(view[first:end], offset + first)
            elif kind == _ZEROS:
                self._file.hide(offset + first, end - first)

    def _kinds(self, offset: int, length: int) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
        """What is to be done with each cell of a piece."""
        mine = self._digests.of_piece(offset, length)
        first = offset // CELL_BYTES
        differs = (mine != self._overlay.digests(first, first + len(mine))).any(axis=1)
        if self._present is not None:
            differs[positions(self._present[first : first + len(mine)])] = True
        return np.where(differs, np.where(mine.any(axis=1), _DATA, _ZEROS), _NOTHING).astype(np.int8)

    def write_zeros(self, offset: int, length: int) -> None:
        """What is to be zeros is known beforehand, see `hide`; nothing is said of the rest."""

    def sync(self) -> None:
        self._file.sync()
        self._digests.sync()

    def finish(self) -> None:
        self._file.finish()

    def close(self) -> None:
        self._file.close()


def check_held(held: Held, extents: Iterable[Extent], digests: DigestsFile, overlay: Overlay, name: str) -> None:
    """SnapfsError unless the file holds every cell that differs from the chain, and no cell that nobody has read."""
    data_cells = zero_cells = 0
    for extent in extents:
        first, end = extent.offset // CELL_BYTES, -(-extent.end // CELL_BYTES)
        data, hidden = held.data[first:end], held.zeros[first:end]
        mine = np.zeros((end - first, 32), np.uint8) if extent.is_zeros else digests.of_cells(first, end)
        is_data = mine.any(axis=1)
        differs = (mine != overlay.digests(first, end)).any(axis=1)
        has_data, has_zeros = _as_bools(data), _as_bools(hidden)
        if (differs & ~np.where(is_data, has_data, has_zeros)).any() or (has_data & ~is_data).any():
            raise _not_held(name)
        if (has_zeros & is_data).any():
            raise _not_held(name)
        data_cells, zero_cells = data_cells + data.count(), zero_cells + hidden.count()
    if (data_cells, zero_cells) != (held.data.count(), held.zeros.count()):
        raise _not_held(name)


def _not_held(name: str) -> SnapfsError:
    return SnapfsError(f"{name} does not hold what was written to it; check the disk it is on, and back up again.")


def _as_bools(bits: bitarray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    found = np.zeros(len(bits), np.bool_)
    found[positions(bits)] = True
    return found


def _runs(kinds: np.ndarray[tuple[int], np.dtype[np.int8]]) -> Iterator[tuple[int, int, int]]:
    """(start, stop, kind) of neighbours of one kind."""
    borders = [0, *(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    for start, stop in pairwise(borders):
        yield start, stop, int(kinds[start])
