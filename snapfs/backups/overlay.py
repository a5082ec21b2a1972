"""The whole image at one time: the tables of a chain on top of each other, the newest above.

What a cell is, is said by the newest table that holds it, as data or as zeros; where none does, it is zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from bitarray import bitarray
from bitarray.util import zeros
from blake3 import blake3

from snapfs.backups.table import Digests, Table
from snapfs.imager.extents import CELL_BYTES, cell_count, extents_of
from snapfs.imager.hashing import DIGEST_BYTES, cell_hasher
from snapfs.imager.manifest import Hashed, Manifest
from snapfs.imager.unread import Ranges


class Overlay:
    """`held` has a bit per cell that is data; no tables: an image of zeros."""

    def __init__(self, image_bytes: int, tables: Sequence[Table]) -> None:
        """The oldest table first."""
        self.image_bytes, self._tables = image_bytes, tables
        self.held = zeros(cell_count(image_bytes), "little")
        for table in tables:
            data, hidden = table.maps()
            self.held &= ~hidden
            self.held |= data

    def digests(self, first: int, end: int) -> Digests:
        """Of each cell in the range; zeros where it is zeros.

        No table above the newest that has a held cell as data says anything of it: zeros there, and it were not held.
        """
        found = np.zeros((end - first, DIGEST_BYTES), np.uint8)
        missing = self.held[first:end]
        for table in reversed(self._tables):
            if not missing.any():
                break
            data = table.data_in(first, end)
            taken = data & missing
            if not taken.any():
                continue
            wanted = positions(taken)
            found[wanted] = table.digests(first, end)[np.searchsorted(positions(data), wanted)]
            missing &= ~data
        return found

    def manifest(self, unread: Ranges) -> Manifest:
        """As of a backup of its own in which what is not held is free."""
        return Manifest(self.image_bytes, "qcow2", tuple(self._hashed()), unread=unread, new_hasher=cell_hasher)

    def _hashed(self) -> Iterator[Hashed]:
        for extent in extents_of(self.held, self.image_bytes):
            digests = self.digests(extent.offset // CELL_BYTES, -(-extent.end // CELL_BYTES))
            yield Hashed(extent, blake3(digests.tobytes()).digest())


def positions(bits: bitarray) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Which bits are set."""
    unpacked = np.unpackbits(np.frombuffer(bits.tobytes(), np.uint8), bitorder="little")
    return np.flatnonzero(unpacked[: len(bits)])
