"""A map as other programs read it.

- `write_domain`: a domain map for ddrescue (`--domain-mapfile`), as partclone (`--domain`) writes it too.
  Source: GNU ddrescue manual, chapter "Mapfile structure". Used is "+" (finished), free is "?" (non-tried):
  ddrescue then copies exactly what is used.
- `extents`: the list that `qemu-img map --output=json` prints, without the fields that need a file format.

Both cover the image from 0 to its end without gaps or overlaps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TextIO, TypedDict

from bitarray.util import intervals

from snapfs.usedmap.result import ImageMap


class Extent(TypedDict):
    """`length` bytes from `start` on; `data` is True where the image holds something."""

    start: int
    length: int
    data: bool


def extents(image_map: ImageMap) -> Iterator[Extent]:
    """Stretches of used and of free bytes, in turn."""
    for used, first, end in intervals(image_map.used):
        start = first * image_map.block_bytes
        stop = min(end * image_map.block_bytes, image_map.size_bytes)
        yield {"start": start, "length": stop - start, "data": bool(used)}


def write_domain(file: TextIO, image_map: ImageMap, program: str = "snapfs") -> None:
    """Write the map of the image as a domain map."""
    file.write(f"# Mapfile. Created by {program}\n")
    file.write("# current_pos  current_status  current_pass\n0x00000000     ?               1\n")
    file.write("#      pos        size  status\n")
    for extent in extents(image_map):
        file.write(f"0x{extent['start']:08X}  0x{extent['length']:08X}  {'+' if extent['data'] else '?'}\n")
