"""Where a reader of an older cut finds a block: the first of the later cuts that has it.

All later cuts but the newest are *frozen*: nothing in them is settled any more, but by a merge, which changes the
list of cuts. So each of them is asked once for a piece of the image, and a byte for each block keeps the answer as
long as the list stays: a read takes as long through a hundred of them as through one.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Final

from bitarray import bitarray

from cow.disk.layout import CutCounter
from cow.errors import Damaged
from cow.preserved import PreservedReader

# Places: in none of them; and not to be told by bits alone, so they have to be looked through one after the other.
NOWHERE: Final = 0
UNCLEAR: Final = 255
_BYTE: Final = [bytes((place,)) for place in range(UNCLEAR + 1)]
# Asking a hundred cuts takes as long for one block as for this many, and a reader keeps so many pieces: 256 KiB.
_PIECE_BLOCKS: Final = 2048
_MOST_PIECES: Final = 128
_NONE_OF_IT: Final = bytes(_PIECE_BLOCKS)
_missing_bytes: Final = itemgetter(CutCounter.MISSING_BYTES.value)


class FrozenCuts:
    """`links`: the later cuts but the newest, oldest first."""

    def __init__(self, links: Sequence[PreservedReader], block_count: int) -> None:
        self._links, self._block_count = links, block_count
        self._pages = [link.numbers.view for link in links]
        self._missing = list(map(_missing_bytes, self._pages))
        self._pieces: OrderedDict[int, bytes] = OrderedDict()

    def runs(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """`(place, first, end)` for all of the blocks: number `place - 1` of the links has them, or see there."""
        while first < end:
            number, at = divmod(first, _PIECE_BLOCKS)
            stop = min(end, (number + 1) * _PIECE_BLOCKS)
            piece = self._piece(number)
            if piece is _NONE_OF_IT:
                yield NOWHERE, first, stop
            else:
                rest = piece[at : at + stop - first]
                while rest:
                    place = rest[0]
                    other = rest.lstrip(_BYTE[place])
                    count = len(rest) - len(other)
                    yield place, first, first + count
                    first, rest = first + count, other
            first = stop

    def _piece(self, number: int) -> bytes:
        piece = self._pieces.get(number)
        if piece is None:
            piece = self._pieces[number] = self._look(number)
            if len(self._pieces) > _MOST_PIECES:
                self._pieces.popitem(last=False)
        else:
            self._pieces.move_to_end(number)
        return piece

    def _look(self, number: int) -> bytes:
        first = number * _PIECE_BLOCKS
        end = min(first + _PIECE_BLOCKS, self._block_count)
        rest, found = bitarray(end - first, "little"), 0
        rest.setall(True)
        for place, link in enumerate(self._links, 1):
            # What was lost there matters to those that look through it.
            is_clear = place < UNCLEAR and link.numbers.is_kept and not self._missing[place - 1]
            bits = link.cut.settled.bits(first, end) & rest if is_clear else rest
            if bits.any():
                unpacked = bits.unpack(_BYTE[NOWHERE], _BYTE[place if is_clear else UNCLEAR])
                found |= int.from_bytes(unpacked, "little")
                rest ^= bits
        # Last: what is gone looks like zeros.
        if not all(link.settled.has_its_size for link in self._links):
            raise Damaged("files of it were cut short or cannot be read", first)
        return found.to_bytes(_PIECE_BLOCKS, "little") if found else _NONE_OF_IT

    def is_still_so(self) -> bool:
        """Whether what was told is right; else it is forgotten. To be asked after a read."""
        missing = list(map(_missing_bytes, self._pages))
        if missing == self._missing:
            return True
        # The image is shorter than it was when one of them was the newest, which was noted just then.
        self._missing = missing
        self._pieces.clear()
        return False

    def forget(self) -> None:
        """They are not needed for a while."""
        self._pieces.clear()
