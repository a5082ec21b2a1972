"""The image as it was at each of its cuts, read-only whatever is asked of it.

Whoever opens one gets a handle, which is the generation of the cut: it fails with ESTALE once that is not shown any
more. The newest is the one that the view shows as the image; the others are shown by their names. There may be none.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, cast

import trio

from cow import CowError, Cut, CutCounter, CutHeader, Damaged, Header, Image, PartTimes, SeekingReader, Store
from snapfs.serving.errnos import errno_of
from snapfs.serving.permissions import Permission, Permissions
from snapfs.serving.served import MAX_REQUEST_BYTES, Attributes, Served

# Whoever looks for holes may do so for seconds: he keeps no read waiting, nor, with many of his kind, the event loop.
_READERS, _SEEKERS = 4, 2
# So many snapshots, those that were read last, keep in memory what makes the next reads quick.
_READ_LATELY = 8
# What free blocks read as, shared by all answers.
_ZEROS = memoryview(bytes(MAX_REQUEST_BYTES))
# A handle is the generation of its cut, with this bit when its reads do not count.
UNCOUNTED: Final = 1 << 62


class _Shown:
    """One cut as the view shows it. A reader serves one thread: one for the event loop, one for each that waits."""

    def __init__(self, store: Store, facts: CutHeader, image: Image) -> None:
        self.store, self.facts, self._image = store, facts, image
        self.generation = facts.generation
        self.reader = SeekingReader(store, image)
        self._idle: list[SeekingReader] = []
        self._is_closed = self._rests = False

    def read(self, offset: int, length: int) -> memoryview:
        """In a thread that may wait. SnapshotEnded: the cut is not shown any more."""
        with self._reading() as reader:
            buffer = memoryview(bytearray(length))
            reader.read_into(buffer, offset)
            return buffer

    def seek(self, offset: int, stop: int, for_hole: bool) -> int | None:
        """The same, see `SeekingReader`."""
        with self._reading() as reader:
            return reader.seek(offset, stop, for_hole=for_hole)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[SeekingReader]:
        with self.store.cut.held():
            reader = self._idle.pop() if self._idle else SeekingReader(self.store, self._image)
            try:
                yield reader
            finally:
                self._idle.append(reader)
                if self._is_closed:
                    self._close_idle()
                    self.store.open_segments.close()
                elif self._rests:
                    self._close_idle()

    def begin(self) -> None:
        """It is read."""
        self._rests = False

    def rest(self) -> None:
        """Others are read."""
        self._rests = True
        self.reader.rest()
        self._close_idle()

    def let_go_of_lost(self) -> None:
        """Of a lost one nothing is read any more, and its files take room as long as they are open."""
        if not self.store.cut.numbers.is_kept:
            self._close_idle()
            self.reader.forget()

    def close(self) -> None:
        """It is shown no more; whoever still reads it in a thread is the last to let go."""
        self._is_closed = True
        self._close_idle()
        self.reader.close()
        self.store.cut.let_go()

    def _close_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().rest()


class SnapshotImage(Served):
    """Requests to SnapshotReaders; `on_damage` is told of what cannot be read: the generation of the cut, and a
    sentence."""

    def __init__(
        self, store: Store, image: Image, permissions: Permissions, on_damage: Callable[[int, str], None]
    ) -> None:
        Served.__init__(self, permissions, store.header.image_bytes, store.header.block_bytes)
        self._image, self._on_damage = image, on_damage
        # Called with offset and length for every read that succeeded and every hole that somebody was told of, and
        # for every close.
        self.on_read: Callable[[int, int], None] = lambda offset, length: None
        self.on_hole: Callable[[int, int], None] = lambda offset, length: None
        self.on_close: Callable[[], None] = lambda: None
        self._readers = trio.CapacityLimiter(_READERS)
        self._seekers = trio.CapacityLimiter(_SEEKERS)
        self._present = store
        # Those that somebody has opened.
        self._shown: dict[int, _Shown] = {}
        self._read_lately: OrderedDict[_Shown, None] = OrderedDict()
        # By generation; the second of those that are not the newest, until there is another list of cuts.
        self._used_bytes: dict[int, int] = {}
        self._counts: dict[int, tuple[int, int]] = {}

    def show(self, store: Store) -> None:
        """Show the cuts that the header of `store` lists from now on, and let go of the others."""
        before, self._present = self._present, store
        if before.cut is not store.cut:
            before.cut.let_go()
        listed = {one.generation for one in store.header.shown}
        self._used_bytes = {one: used_bytes for one, used_bytes in self._used_bytes.items() if one in listed}
        self._counts.clear()
        for generation in self._shown.keys() - listed:
            shown = self._shown.pop(generation)
            self._read_lately.pop(shown, None)
            shown.close()
        for shown in self._shown.values():
            shown.let_go_of_lost()
        # Some may be of what is over, and take room as long as they are open.
        store.open_segments.close()

    def trim(self) -> None:
        """Give back the resident memory of the mappings."""
        for shown in self._shown.values():
            shown.reader.trim()

    @property
    def header(self) -> Header:
        """The header of the store, with the newest cut."""
        return self._present.header

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
            self._sectors(cut),
            cut.image_atime_ns,
            cut.image_mtime_ns,
            cut.taken_at_ns,
        )

    def _sectors(self, facts: CutHeader) -> int:
        """How many of them hold something: what copies a file looks for its holes only if they are fewer than its
        size tells. About right, and never none, which tar takes for a file of zeros without a look."""
        used_bytes = self._used_bytes.get(facts.generation)
        if used_bytes is None:
            used_bytes = self._look_at_used(facts)
        return max(1, -(-min(self.image_bytes, used_bytes) // 512))

    def _look_at_used(self, facts: CutHeader) -> int:
        """Kept for a cut that is not the newest, whose map never changes."""
        newest = self.newest
        if newest is None or facts.is_hidden:
            return self.image_bytes
        try:
            free_blocks, _ = self._counts_of(facts.generation)
            used_bytes = self.image_bytes - free_blocks * self.block_bytes
            if not self._permissions.is_device:
                used_bytes = min(used_bytes, self._kept_bytes(facts.generation, used_bytes))
        except (CowError, OSError):
            return self.image_bytes
        if facts.generation != newest.generation:
            self._used_bytes[facts.generation] = used_bytes
        return used_bytes

    def _kept_bytes(self, generation: int, most_bytes: int) -> int:
        """What the image has, and what the cut and those after it preserved, which a discard may have taken out of
        the image since. What was written over counts twice; so no further than to `most_bytes`."""
        kept_bytes = self._image.used_bytes
        for one in self.header.cuts:
            if kept_bytes >= most_bytes:
                break
            if one.generation >= generation:
                kept_bytes += self._counts_of(one.generation)[1] * self.block_bytes
        return kept_bytes

    def _counts_of(self, generation: int) -> tuple[int, int]:
        """How many blocks of a cut are free, and how many it has preserved. OSError, CowError: nobody knows."""
        counts = self._counts.get(generation)
        if counts is not None:
            return counts
        shown = self._shown.get(generation)
        cut = self._cut_of(generation) if shown is None else shown.store.cut.hold()
        try:
            counts = cut.numbers[CutCounter.FREE_BLOCKS], cut.numbers[CutCounter.PRESERVED_BLOCKS]
        finally:
            cut.let_go()
        if generation != self._present.cut.generation:
            self._counts[generation] = counts
        return counts

    def _cut_of(self, generation: int) -> Cut:
        store = self._present
        if generation == store.cut.generation:
            return store.cut.hold()
        return store.open_cut(generation, writable=False)

    def begin_reading(self, generation: int) -> None:
        """Somebody opens that cut. OSError, SnapshotEnded: it cannot be."""
        if generation in self._shown:
            return
        facts, cut = self._facts_of(generation), self._cut_of(generation)
        self._shown[generation] = _Shown(replace(self._present, cut=cut), facts, self._image)

    def part_times(self, generation: int) -> PartTimes:
        """When its parts were changed, to be closed. FileNotFoundError: nobody knows, or not yet; else as for
        `begin_reading`."""
        self.begin_reading(generation)
        shown = self._shown[generation]
        return PartTimes(shown.store.cut, shown.store.geometry)

    def used_bytes(self, generation: int, offset: int, length: int) -> int:
        """How much of that is no free space, nor a hole that the image has had since; 0: it reads as zeros. As for
        `begin_reading`."""
        self.begin_reading(generation)
        return self._shown[generation].reader.used_bytes(offset, length)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        size = min(size, self.image_bytes - off)
        if size <= 0:
            return b""
        shown = self._shown.get(fh & ~UNCOUNTED)
        if shown is None:
            return await self.read_other(fh, off, size)
        self._note_reading(shown)
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
        shown = self._shown.get(generation)
        if shown is None:
            raise self.failure(errno.ESTALE)
        self._note_reading(shown)
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

    def _note_reading(self, shown: _Shown) -> None:
        if shown in self._read_lately:
            self._read_lately.move_to_end(shown)
            return
        shown.begin()
        self._read_lately[shown] = None
        if len(self._read_lately) > _READ_LATELY:
            self._read_lately.popitem(last=False)[0].rest()

    async def _read(self, shown: _Shown, offset: int, length: int) -> memoryview:
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
