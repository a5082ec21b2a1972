"""How the bytes of an extent become its digest.

plain      BLAKE3 of its bytes
by cells   BLAKE3 of the digests of its cells, one after the other: BLAKE3 of the bytes of each, 32 zero bytes for one
           that holds nothing but zeros. So the digest of any extent follows from those of its cells.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, Protocol

from blake3 import blake3

from snapfs.imager.extents import CELL_BYTES, Extent

DIGEST_BYTES: Final = 32
# In the place of the digest of a cell that is zeros.
ZEROS_DIGEST: Final = bytes(DIGEST_BYTES)


class Hasher(Protocol):
    """Takes the bytes of one extent in order."""

    def update(self, data: bytes | memoryview, /) -> Any: ...

    def digest(self) -> bytes: ...


NewHasher = Callable[[Extent], Hasher]


class Hashing(Protocol):
    """The hashers of a backup; told of each extent that was written, before it is noted anywhere."""

    def hasher(self, extent: Extent) -> Hasher: ...

    def written(self, extent: Extent) -> None: ...


class PlainHashing:
    """BLAKE3 of the bytes, and nothing to be kept."""

    def hasher(self, extent: Extent) -> Hasher:
        return plain_hasher(extent)

    def written(self, extent: Extent) -> None:
        return


def plain_hasher(extent: Extent) -> Hasher:
    """For a manifest whose digests are of bytes."""
    return blake3()


def cell_hasher(extent: Extent) -> CellHasher:
    """For one whose digests are by cells."""
    return CellHasher()


class CellHasher:
    """`cells` are the digests of the cells that are complete; the last cell of an image may be shorter."""

    def __init__(self) -> None:
        self.cells = bytearray()
        self._hasher, self._missing = blake3(), CELL_BYTES

    def update(self, data: bytes | memoryview, /) -> None:
        view = memoryview(data)
        while view:
            part = view[: self._missing]
            self._hasher.update(part)
            self._missing -= len(part)
            view = view[len(part) :]
            if not self._missing:
                self._finish_cell()

    def digest(self) -> bytes:
        """Once, when there is no more."""
        if self._missing < CELL_BYTES:
            self._finish_cell()
        return blake3(self.cells).digest()

    def _finish_cell(self) -> None:
        digest = self._hasher.digest()
        self.cells += ZEROS_DIGEST if digest == _digest_of_zeros(CELL_BYTES - self._missing) else digest
        self._hasher, self._missing = blake3(), CELL_BYTES


@functools.lru_cache(maxsize=4)
def _digest_of_zeros(length: int) -> bytes:
    return blake3(bytes(length)).digest()
