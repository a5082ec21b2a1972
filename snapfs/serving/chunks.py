"""The snapshots as files of some MiB each, for tools that copy the files that have changed.

Rules:
- Each folder shows one snapshot: `newest`, the one that is the newest now, the others those of their names. What is
  under a name may become another snapshot; who has anything of the one before open gets ESTALE from then on, and so
  no file that is of two of them.
- A chunk has the time at which anything in it was changed last (see `cow.disk.times`), and a number by its folder
  and its place alone. So it is as before if nothing in it has changed, for tools that look at those.
- As long as nobody knows when it changed, because the map of used blocks is still computed, a folder is waited for.
"""

from __future__ import annotations

import errno
import zlib
from dataclasses import dataclass
from typing import Final

import trio

from cow import CowError, PartTimes
from snapfs.options import NEWEST_NAME
from snapfs.serving.chunk_names import ChunkNames
from snapfs.serving.errnos import errno_of
from snapfs.serving.served import Attributes
from snapfs.serving.snapshot import UNCOUNTED, SnapshotImage

# For how long who asks for a folder waits for the map, and how often it is looked for.
_KNOWN_S: Final = 60.0
_LOOK_S: Final = 0.05
# Tables that are kept open.
_MAX_TABLES: Final = 8
_SECTOR_BYTES: Final = 512


@dataclass(frozen=True, slots=True)
class _Handle:
    folder: str
    generation: int
    number: int


class Chunks:
    """Of the snapshots that `image` shows."""

    def __init__(self, image: SnapshotImage, chunk_bytes: int) -> None:
        self._image = image
        self.names = ChunkNames(image.image_bytes, chunk_bytes)
        self._tables: dict[int, PartTimes] = {}
        self._handles: dict[int, _Handle] = {}
        self._last_handle = 0

    # --- folders ---------------------------------------------------------------------------------------------

    @property
    def folders(self) -> dict[str, int]:
        """The generations of the cuts that are shown, by the names of their folders."""
        newest = self._image.newest
        return {} if newest is None else {**self._image.names, NEWEST_NAME: newest.generation}

    def slot(self, folder: str) -> int:
        """A number for the name of a folder, whatever it shows."""
        return 0 if folder == NEWEST_NAME else 1 + zlib.crc32(folder.encode())

    def folder_of(self, slot: int) -> str:
        """Inverse of `slot`; ESTALE when there is none any more. Of two that have the same number, the first."""
        for folder in sorted(self.folders):
            if self.slot(folder) == slot:
                return folder
        raise self._image.failure(errno.ESTALE)

    def generation_of(self, folder: str) -> int:
        """What the folder shows now; ENOENT: there is no such folder."""
        generation = self.folders.get(folder)
        if generation is None or self.folder_of(self.slot(folder)) != folder:
            raise self._image.failure(errno.ENOENT)
        return generation

    async def enter(self, folder: str) -> int:
        """What the folder shows, when its times are known; EAGAIN: they are not, in time."""
        with trio.move_on_after(_KNOWN_S):
            while True:
                generation = self.generation_of(folder)
                if self._find_table(generation) is not None:
                    return generation
                newest = self._image.newest
                if newest is None or newest.generation != generation:
                    break
                await trio.sleep(_LOOK_S)
        raise self._image.failure(errno.EAGAIN)

    def check(self, folder: str, generation: int) -> None:
        """ESTALE unless the folder shows that."""
        if self.folders.get(folder) != generation:
            raise self._image.failure(errno.ESTALE)

    def changed_ns(self, generation: int) -> int:
        """When anything in it was changed last."""
        return self._table(generation).latest_ns

    # --- files -----------------------------------------------------------------------------------------------

    def attributes(self, generation: int, number: int, like: Attributes | None = None) -> Attributes:
        """Of that chunk. `like`: of another one of the same cut, asked for just now."""
        offset, length = self.names.extent(number)
        try:
            changed_ns = self._table(generation).changed_ns(offset, length)
            sectors = -(-self._image.used_bytes(generation, offset, length) // _SECTOR_BYTES)
        except (CowError, OSError) as error:
            raise self._image.failure(errno_of(error)) from error
        permission = self._image.permission(generation) if like is None else like.permission
        return Attributes(permission, sectors, changed_ns, changed_ns, changed_ns)

    def open(self, folder: str, number: int) -> int:
        """A handle."""
        generation = self.generation_of(folder)
        self._table(generation)
        try:
            self._image.begin_reading(generation)
        except (CowError, OSError) as error:
            raise self._image.failure(errno_of(error)) from error
        self._last_handle += 1
        self._handles[self._last_handle] = _Handle(folder, generation, number)
        return self._last_handle

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        opened = self._handles[handle]
        self.check(opened.folder, opened.generation)
        start, length = self.names.extent(opened.number)
        size = min(size, length - offset)
        if size <= 0:
            return b""
        return await self._image.read(opened.generation | UNCOUNTED, start + offset, size)

    async def seek(self, handle: int, offset: int, whence: int) -> int:
        opened = self._handles[handle]
        self.check(opened.folder, opened.generation)
        return await self._image.seek_in(opened.generation, offset, whence, *self.names.extent(opened.number))

    def close(self, handle: int) -> None:
        self._handles.pop(handle, None)

    # --- tables ----------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Other cuts are shown, perhaps."""
        shown = {one.generation for one in self._image.header.shown}
        for generation in self._tables.keys() - shown:
            self._tables.pop(generation).close()

    def _table(self, generation: int) -> PartTimes:
        table = self._find_table(generation)
        if table is None:
            raise self._image.failure(errno.ESTALE)
        return table

    def _find_table(self, generation: int) -> PartTimes | None:
        table = self._tables.get(generation)
        if table is not None and table.is_valid:
            return table
        if table is not None:
            self._tables.pop(generation).close()
        try:
            table = self._image.part_times(generation)
        except FileNotFoundError:
            return None
        except (CowError, OSError) as error:
            raise self._image.failure(errno_of(error)) from error
        if len(self._tables) >= _MAX_TABLES:
            self._tables.pop(next(iter(self._tables))).close()
        self._tables[generation] = table
        return table
