"""The image as it was at each of its cuts, read-only whatever is asked of it.

Whoever opens one gets a handle, which is the generation of the cut: it fails with ESTALE once that is not shown any
more. The newest is the one that the view shows as the image; the others are shown by their names. There may be none.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Final, cast

import trio

from cow import CowError, CutHeader, Damaged, Header, Image, PartTimes, Store
from snapfs.serving.errnos import errno_of
from snapfs.serving.open_cuts import OpenCut, OpenCuts
from snapfs.serving.permissions import Permission, Permissions
from snapfs.serving.served import MAX_REQUEST_BYTES, Attributes, Served
from snapfs.serving.used_space import UsedSpace

# Whoever looks for holes may do so for seconds: he keeps no read waiting, nor, with many of his kind, the event loop.
_READERS, _SEEKERS = 4, 2
# What free blocks read as, shared by all answers.
_ZEROS = memoryview(bytes(MAX_REQUEST_BYTES))
# A handle is the generation of its cut, with this bit when its reads do not count.
UNCOUNTED: Final = 1 << 62


class SnapshotImage(Served):
    """Requests to SnapshotReaders; `on_damage` is told of what cannot be read: the generation of the cut, and a
    sentence."""

    def __init__(
        self, store: Store, image: Image, permissions: Permissions, on_damage: Callable[[int, str], None]
    ) -> None:
        Served.__init__(self, permissions, store.header.image_bytes, store.header.block_bytes)
        self.cuts = OpenCuts(store, image)
        self._used = UsedSpace(self.cuts, image, is_device=permissions.is_device)
        self._on_damage = on_damage
        # Called with offset and length for every read that succeeded and every hole that somebody was told of, and
        # for every close.
        self.on_read: Callable[[int, int], None] = lambda offset, length: None
        self.on_hole: Callable[[int, int], None] = lambda offset, length: None
        self.on_close: Callable[[], None] = lambda: None
        self._readers = trio.CapacityLimiter(_READERS)
        self._seekers = trio.CapacityLimiter(_SEEKERS)

    def show(self, store: Store) -> None:
        """Show the cuts that the header of `store` lists from now on, and let go of the others."""
        self._used.show(store)
        self.cuts.show(store)

    @property
    def header(self) -> Header:
        """The header of the store, with the newest cut."""
        return self.cuts.present.header

    @property
    def newest(self) -> CutHeader | None:
        """The one that the view shows as the image; None when there is no snapshot."""
        shown = self.header.shown
        return shown[-1] if shown else None

    @property
    def names(self) -> dict[str, int]:
        """The generations of the cuts that are shown by their names."""
        return {one.name: one.generation for one in self.header.shown if one.name}

    def _facts_of(self, generation: int) -> CutHeader:
        facts = self.header.cut_of(generation)
        if facts is None or facts.is_hidden:
            raise self.failure(errno.ESTALE)
        return facts

    def _facts_or_newest(self, generation: int | None) -> CutHeader:
        if generation is not None:
            return self._facts_of(generation)
        return self.newest or self.header.cut

    def permission(self, generation: int | None = None) -> Permission:
        """Of a cut, the newest without a `generation`; for the directory also when none is shown."""
        cut = self._facts_or_newest(generation)
        return self._permissions.of_snapshot(Permission(cut.image_mode, cut.image_uid, cut.image_gid))

    def attributes(self, generation: int | None = None) -> Attributes:
        """The same."""
        cut = self._facts_or_newest(generation)
        return Attributes(
            self.permission(generation),
            self._used.sectors(cut),
            cut.image_atime_ns,
            cut.image_mtime_ns,
            cut.taken_at_ns,
        )

    def begin_reading(self, generation: int) -> None:
        """Somebody opens that cut. OSError, SnapshotEnded: it cannot be."""
        self._begun(generation)

    def _begun(self, generation: int) -> OpenCut:
        opened = self.cuts.get(generation)
        return self.cuts.begin(self._facts_of(generation).generation) if opened is None else opened

    def part_times(self, generation: int) -> PartTimes:
        """When its parts were changed, to be closed. FileNotFoundError: nobody knows, or not yet; else as for
        `begin_reading`."""
        shown = self._begun(generation)
        return PartTimes(shown.store.cut, shown.store.geometry)

    def used_bytes(self, generation: int, offset: int, length: int) -> int:
        """How much of that is no free space, nor a hole that the image has had since; 0: it reads as zeros. As for
        `begin_reading`."""
        return self._begun(generation).reader.used_bytes(offset, length)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        size = min(size, self.image_bytes - off)
        if size <= 0:
            return b""
        shown = self.cuts.read_of(fh & ~UNCOUNTED)
        if shown is None:
            return await self.read_other(fh, off, size)
        try:
            view = await self._read(shown, off, size)
            if not fh & UNCOUNTED and self._is_newest(shown.generation):
                self.on_read(off, size)
            return cast(bytes, view)
        except Exception as error:
            if isinstance(error, Damaged):
                self._on_damage(shown.generation, str(error))
            raise self.failure(errno_of(error)) from error

    async def read_other(self, fh: int, off: int, size: int) -> bytes:
        """Of a handle that is of no cut."""
        raise self.failure(errno.ESTALE)

    async def lseek(self, fh: int, off: int, whence: int) -> int:
        generation = fh & ~UNCOUNTED
        found = await self._seek(generation, off, whence, 0, self.image_bytes)
        if whence == os.SEEK_DATA and not fh & UNCOUNTED and self._is_newest(generation):
            stop = self.image_bytes if found is None else found
            if off < stop:
                self.on_hole(off, stop - off)
        return self.found(found)

    async def seek_in(self, generation: int, offset: int, whence: int, start: int, length: int) -> int:
        """As lseek in a file that has that part of the image, in a cut that is open."""
        return self.found(await self._seek(generation, offset, whence, start, length))

    async def _seek(self, generation: int, offset: int, whence: int, start: int, length: int) -> int | None:
        """The same; None: there is no data any more."""
        for_hole = self.check_seek(offset, whence, length)
        shown = self.cuts.read_of(generation)
        if shown is None:
            raise self.failure(errno.ESTALE)
        first, stop = start + offset, start + length
        try:
            is_found, found = shown.reader.try_seek(first, stop, for_hole=for_hole)
            if not is_found:
                found = await trio.to_thread.run_sync(shown.seek, first, stop, for_hole, limiter=self._seekers)
        except (CowError, OSError) as error:
            if isinstance(error, Damaged):
                self._on_damage(shown.generation, str(error))
            raise self.failure(errno_of(error)) from error
        return None if found is None else found - start

    async def _read(self, shown: OpenCut, offset: int, length: int) -> memoryview:
        if length <= len(_ZEROS) and shown.reader.reads_as_zeros(offset, length):
            return _ZEROS[:length]
        view = self._scratch[:length] if length <= len(self._scratch) else memoryview(bytearray(length))
        if shown.reader.try_read(view, offset):
            return view
        return await trio.to_thread.run_sync(shown.read, offset, length, limiter=self._readers)

    async def release(self, fh: int) -> None:
        """A handle is closed."""
        if self._is_newest(fh):
            self.on_close()

    def _is_newest(self, generation: int) -> bool:
        newest = self.newest
        return newest is not None and newest.generation == generation
