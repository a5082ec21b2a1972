"""How the files of the chunked view are called, and which bytes of the image each of them has.

    00M  04M  08M  12M-13631488.end

The place in MiB, as wide as the size of the image needs, so that they sort; the last one has that size, in bytes. A
name and a size are the same bytes of the image whatever the size of the chunks.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

MIN_CHUNK_BYTES: Final = 1 << 20
_NAME: Final = re.compile(r"([0-9]{1,9})M(?:-([0-9]{1,16})\.end)?")


class ChunkName(NamedTuple):
    """Where the chunk begins; of the last one, where the image ends."""

    offset: int
    image_bytes: int | None


class ChunkNames:
    """Those of an image of `image_bytes` in chunks of `chunk_bytes`, a multiple of a MiB."""

    def __init__(self, image_bytes: int, chunk_bytes: int) -> None:
        self.image_bytes, self.chunk_bytes = image_bytes, chunk_bytes
        self.count = -(-image_bytes // chunk_bytes)
        self._width = len(str((image_bytes - 1) // MIN_CHUNK_BYTES))

    def extent(self, number: int) -> tuple[int, int]:
        """The bytes `offset, length` of that chunk, from 0."""
        offset = number * self.chunk_bytes
        return offset, min(self.chunk_bytes, self.image_bytes - offset)

    def name(self, number: int) -> str:
        last = f"-{self.image_bytes}.end" if number == self.count - 1 else ""
        return f"{self.place(number):0{self._width}d}M{last}"

    def place(self, number: int) -> int:
        """A number for the chunk that is the same whatever the size of the chunks."""
        return number * self.chunk_bytes // MIN_CHUNK_BYTES

    def at_place(self, place: int) -> int | None:
        """Inverse of `place`; None for none."""
        number, rest = divmod(place * MIN_CHUNK_BYTES, self.chunk_bytes)
        return number if not rest and number < self.count else None

    def number(self, name: str) -> int | None:
        """Inverse of `name`; None for what is none of them."""
        parsed = parse_chunk_name(name)
        if parsed is None:
            return None
        number = parsed.offset // self.chunk_bytes
        return number if number < self.count and self.name(number) == name else None


def parse_chunk_name(name: str) -> ChunkName | None:
    """Of any image; None for what is no name of a chunk."""
    match = _NAME.fullmatch(name)
    return None if match is None else ChunkName(int(match[1]) * MIN_CHUNK_BYTES, int(match[2]) if match[2] else None)
