"""`snapfs` that leaves a cell out of an increment. The first argument is its offset."""

from __future__ import annotations

import sys
from typing import Any

from snapfs.backups.choice import Below
from snapfs.cli import main
from snapfs.imager.extents import CELL_BYTES, Extent

_, OFFSET, *WORDS = sys.argv
extents: Any = Below.extents


def forgetful(self: Below, source: Any) -> list[Extent]:
    start, found = int(OFFSET), []
    for extent in extents(self, source):
        if extent.offset <= start < extent.end:
            found += [
                Extent(extent.offset, start - extent.offset),
                Extent(start + CELL_BYTES, extent.end - start - CELL_BYTES),
            ]
        else:
            found.append(extent)
    return [extent for extent in found if extent.length]


Below.extents = forgetful  # type: ignore[method-assign]
sys.argv = ["snapfs", *WORDS]
main()
