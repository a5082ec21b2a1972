"""The image as it was at the cut, read-only whatever is asked of it.

Whoever opens it gets a handle, which is of the cut that is shown then: it fails with ESTALE once another one is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final, cast

import trio

from cow import Damaged, Header, Image, SnapshotEnded, SnapshotReader, Store
from snapfs.serving.errnos import errno_of
from snapfs.serving.permissions import Permission, Permissions
from snapfs.serving.served import MAX_REQUEST_BYTES, Attributes, Served

_READERS = 4
# What free blocks read as, shared by all answers.
_ZEROS = memoryview(bytes(MAX_REQUEST_BYTES))
# A handle is the generation of its cut, with this bit when its reads do not count.
UNCOUNTED: Final = 1 << 62


class _Shown:
    """One cut as the view shows it. A reader serves one thread: one for the event loop, one for each that waits."""

    def __init__(self, store: Store, image: Image) -> None:
        self.store, self._image = store, image
        self.generation = store.header.cut.generation
        self.reader = SnapshotReader(store, image)
        self._idle: list[SnapshotReader] = []
        self._is_closed = False

    def read(self, offset: int, length: int) -> memoryview:
        """In a thread that may wait. SnapshotEnded: the cut is not shown any more."""
        with self.store.cut.held():
            reader = self._idle.pop() if self._idle else SnapshotReader(self.store, self._image)
            try:
                buffer = memoryview(bytearray(length))
                reader.read_into(buffer, offset)
                return buffer
            finally:
                self._idle.append(reader)
                if self._is_closed:
                    self._close_idle()

    def close(self) -> None:
        """It is shown no more; whoever still reads it in a thread is the last to let go."""
        self._is_closed = True
        self.reader.close()
        self._close_idle()
        self.store.cut.let_go()

    def _close_idle(self) -> None:
        with contextlib.suppress(IndexError):
            while True:
                self._idle.pop().close()


class SnapshotImage(Served):
    """Requests to SnapshotReaders; `on_damage` is told of what cannot be read: the generation of the cut, and a
    sentence."""

    def __init__(
        self, store: Store, image: Image, permissions: Permissions, on_damage: Callable[[int, str], None]
    ) -> None:
        Served.__init__(self, permissions, store.header.image_bytes, store.header.block_bytes)
        self._image, self._on_damage = image, on_damage
        # Called with offset and length for every read that succeeded, and for every close.
        self.on_read: Callable[[int, int], None] = lambda offset, length: None
        self.on_close: Callable[[], None] = lambda: None
        self._readers = trio.CapacityLimiter(_READERS)
        self._shown = _Shown(store, image)

    def show(self, store: Store) -> None:
        """Show the cut that `store` is open on from now on, and let go of the one before."""
        before, self._shown = self._shown, _Shown(store, self._image)
        before.close()

    def trim(self) -> None:
        """Give back the resident memory of the mappings."""
        self._shown.reader.trim()

    @property
    def header(self) -> Header:
        """The header of the cut that is shown."""
        return self._shown.store.header

    def permission(self) -> Permission:
        cut = self.header.cut
        return self._permissions.of_snapshot(Permission(cut.image_mode, cut.image_uid, cut.image_gid))

    def attributes(self) -> Attributes:
        header = self.header
        return Attributes(
            self.permission(),
            -(-header.image_bytes // 512),
            header.cut.image_atime_ns,
            header.cut.image_mtime_ns,
            header.cut.taken_at_ns,
        )

    async def read(self, fh: int, off: int, size: int) -> bytes:
        size = min(size, self.image_bytes - off)
        if size <= 0:
            return b""
        shown = self._shown
        try:
            if fh & ~UNCOUNTED != shown.generation:
                raise SnapshotEnded("the file was opened before the present cut")
            view = await self._read(shown, off, size)
            if not fh & UNCOUNTED:
                self.on_read(off, size)
            return cast(bytes, view)
        except Exception as error:
            if isinstance(error, Damaged):
                self._on_damage(shown.generation, str(error))
            raise self.failure(errno_of(error)) from error

    async def _read(self, shown: _Shown, offset: int, length: int) -> memoryview:
        if length <= len(_ZEROS) and shown.reader.reads_as_zeros(offset, length):
            return _ZEROS[:length]
        view = self._scratch[:length] if length <= len(self._scratch) else memoryview(bytearray(length))
        if shown.reader.try_read(view, offset):
            return view
        return await trio.to_thread.run_sync(shown.read, offset, length, limiter=self._readers)

    async def release(self, fh: int) -> None:
        """A handle is closed."""
        if fh == self._shown.generation:
            self.on_close()
