"""A map as other programs read it.

- `write_domain`: a domain map for ddrescue (`--domain-mapfile`), as partclone (`--domain`) writes it too.
  Source: GNU ddrescue manual, chapter "Mapfile structure". Used is "+" (finished), free is "?" (non-tried):
  ddrescue then copies exactly what is used.
- `json_extents`: the list that `qemu-img map --output=json` prints, without the fields that need a file format.

Both cover the image from 0 to its end without gaps or overlaps. A map may have millions of extents, so they become
text as they are found, and are never all in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TextIO

from bitarray.util import intervals

from snapfs.usedmap.result import ImageMap

# So many extents become one piece of text: some hundred KiB.
_PIECE_EXTENTS = 4096


def json_extents(image_map: ImageMap) -> Iterator[str]:
    """Stretches of used and of free bytes, in turn, as the text of a JSON list, in pieces.

    Each has `length` bytes from `start` on; `data` is true where the image holds something.
    """
    items = (
        f'{{"start": {start}, "length": {length}, "data": {"true" if used else "false"}}}'
        for used, start, length in _stretches(image_map)
    )
    yield "["
    yield from _pieces(items, ", ")
    yield "]"


def write_domain(file: TextIO, image_map: ImageMap, program: str = "snapfs") -> None:
    """Write the map of the image as a domain map."""
    file.write(f"# Mapfile. Created by {program}\n")
    file.write("# current_pos  current_status  current_pass\n0x00000000     ?               1\n")
    file.write("#      pos        size  status\n")
    lines = (
        f"0x{start:08X}  0x{length:08X}  {'+' if used else '?'}\n" for used, start, length in _stretches(image_map)
    )
    for piece in _pieces(lines, ""):
        file.write(piece)


def set_extents(image_map: ImageMap) -> Iterator[tuple[int, int]]:
    """`(start, length)` in bytes of the stretches whose bits are set, in order."""
    return ((start, length) for is_set, start, length in _stretches(image_map) if is_set)


def _stretches(image_map: ImageMap) -> Iterator[tuple[int, int, int]]:
    """(used, start, length) in bytes; the last block of the image may be a partial one."""
    block_bytes, size_bytes = image_map.block_bytes, image_map.size_bytes
    for used, first, end in intervals(image_map.used):
        start = first * block_bytes
        yield used, start, min(end * block_bytes, size_bytes) - start


def _pieces(items: Iterator[str], separator: str) -> Iterator[str]:
    before = ""
    while piece := separator.join(islice(items, _PIECE_EXTENTS)):
        yield before + piece
        before = separator
