"""A backup compared with the snapshot that it was made of: catches what no hash of a backup can, a cell that was
changed and left out of an increment.

What is free in the snapshot must be zeros in the backup, and every cell of what is used have the digest that the
chain has for it. What could not be read when the backup was made is not compared.
"""

from __future__ import annotations

import numpy as np
from bitarray import bitarray

from snapfs.backups.facts import Facts
from snapfs.backups.overlay import Overlay
from snapfs.errors import UsageError
from snapfs.imager.extents import CELL_BYTES, Extent, extents_of, used_cells
from snapfs.imager.hashing import DIGEST_BYTES, CellHasher
from snapfs.imager.pace import Pace
from snapfs.imager.progress import Meter, Report
from snapfs.imager.source import Source
from snapfs.imager.stages import Stages


def differing_cells(source: Source, facts: Facts, overlay: Overlay, report: Report) -> bitarray:
    """A bit per cell of the image that is not in the backup as it is in `source`, which has to be of the same cut."""
    _check_same(source, facts)
    used = used_cells(source.used, source.block_bytes, source.size_bytes)
    if (holes := source.holes()) is not None:
        used &= ~holes
    differing = overlay.held & ~used
    extents = list(enumerate(extents_of(used, source.size_bytes)))
    meter = Meter("verify", sum(extent.length for _, extent in extents), report)
    comparing = _Comparing(overlay, differing)
    stages = Stages(
        source.read_into,
        lambda view, offset: None,
        comparing.finished,
        meter.advance,
        Pace(None),
        facts.unread,
        comparing.hasher,
        source.will_read,
    )
    stages.run(extents)
    source.check()
    meter.finish()
    for offset, length in facts.unread:
        differing[offset // CELL_BYTES : -(-(offset + length) // CELL_BYTES)] = 0
    return differing


class _Comparing:
    """Takes the digests of extents, and notes the cells in which the chain has others."""

    def __init__(self, overlay: Overlay, differing: bitarray) -> None:
        self._overlay, self._differing = overlay, differing
        self._hashers: dict[int, tuple[Extent, CellHasher]] = {}
        self._count = 0

    def hasher(self, extent: Extent) -> CellHasher:
        hasher = CellHasher()
        self._hashers[self._count] = (extent, hasher)
        self._count += 1
        return hasher

    def finished(self, index: int, digest: bytes) -> None:
        extent, hasher = self._hashers.pop(index)
        first, end = extent.offset // CELL_BYTES, -(-extent.end // CELL_BYTES)
        mine = np.frombuffer(bytes(hasher.cells), np.uint8).reshape(-1, DIGEST_BYTES)
        for number in np.flatnonzero((mine != self._overlay.digests(first, end)).any(axis=1)).tolist():
            self._differing[first + number] = 1


def _check_same(source: Source, facts: Facts) -> None:
    cut = source.facts["cut"]
    if (None if cut is None else cut["id"]) != facts.cut_id or source.size_bytes != facts.image_bytes:
        raise UsageError(
            f"{source.path} does not show what {facts.name} was made of; name a LIVE that still has that snapshot "
            "(snapfs list)."
        )
    if facts.cut_id is None and dict(source.identity) != dict(facts.identity):
        raise UsageError(
            f"{source.path} is not mounted, and was changed since {facts.name} was made of it; back up again."
        )
