"""`snapfs` for which all of a snapshot that an increment leaves out is garbage: cells that it does not read, and what
is free in those that it does. The first argument is the offset of a cell that is garbage as well, or -1."""

from __future__ import annotations

import sys
from typing import Any

from bitarray import bitarray
from bitarray.util import zeros

from snapfs.backups.choice import Below
from snapfs.cli import main
from snapfs.imager import snapshot_source
from snapfs.imager.extents import CELL_BYTES, Extent

_, OFFSET, *WORDS = sys.argv
GARBAGE = b"\xa5"
read_whole: Any = snapshot_source.read_whole
extents: Any = Below.extents
block_bytes = 4096
# A bit per block: what is to be read as it is. Nothing before that is known.
wanted = bitarray()


def noted(self: Below, source: Any) -> list[Extent]:
    global block_bytes, wanted
    found: list[Extent] = extents(self, source)
    block_bytes, wanted = source.block_bytes, zeros(len(source.used), "little")
    for extent in found:
        if not extent.is_zeros:
            wanted[extent.offset // block_bytes : -(-extent.end // block_bytes)] = 1
    wanted &= source.used
    if int(OFFSET) >= 0:
        wanted[int(OFFSET) // block_bytes : (int(OFFSET) + CELL_BYTES) // block_bytes] = 0
    return found


def poisoned(fd: int, view: memoryview, offset: int) -> None:
    read_whole(fd, view, offset)
    for block_no in range(offset // block_bytes, -(-(offset + len(view)) // block_bytes)):
        if not wanted[block_no]:
            start = max(block_no * block_bytes - offset, 0)
            end = min((block_no + 1) * block_bytes - offset, len(view))
            view[start:end] = GARBAGE * (end - start)


Below.extents = noted  # type: ignore[method-assign]
snapshot_source.read_whole = poisoned
sys.argv = ["snapfs", *WORDS]
main()
