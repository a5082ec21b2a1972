"""The live side: every write to the image goes through here, and preserves what the snapshot is owed.

A live write that touches owed blocks, in this order:

1.  the old content into the side buffer (`power`: and durable there),
2.  the index entries,
3.  `settled`,
4.  the image.

Stopped between any two of them, the snapshot and the image are both right.

`try_write` and `try_read` never wait: they do the whole work inside the caller's thread if nothing
stands in the way, or nothing at all and say so; then the caller gives `write` or `read` a thread that may
wait. Steps 1 to 3 are `Claiming`'s. All shared state is under one lock, which is never held over a system call that
may wait.
"""

from __future__ import annotations

import contextlib
import errno
import threading
import time
from collections.abc import Callable, Iterator

from cow.disk.cut import Cut
from cow.disk.files import Data
from cow.disk.header import CutHeader
from cow.disk.image import Image
from cow.disk.layout import CutCounter, Durability, pack_missing, unpack_missing
from cow.disk.seal import write_seal
from cow.disk.store import Store
from cow.holes import Range, between
from cow.live.chain import Chain
from cow.live.claiming import Claiming
from cow.live.cuts import LiveCuts
from cow.live.ending import Ending
from cow.live.heartbeat import Heartbeat
from cow.live.overflow import Event, OverflowPolicy
from cow.live.pace import Pace
from cow.live.pressing import Pressing
from cow.live.relief import Reliefs
from cow.live.room import Room
from cow.live.size import BufferSize
from cow.live.syncing import Syncer
from cow.live.traffic import Gate


class LiveEngine:
    """The one writer of a store. Thread-safe. Offsets and lengths in bytes of the image.

    `on_writing` is called, in any thread, when the first write comes after a pause; `note_quiet` ends it.
    `on_beat` is called now and then as long as writes go on, in any thread.
    """

    def __init__(
        self,
        store: Store,
        image: Image,
        policy: OverflowPolicy = OverflowPolicy.BREAK_SNAPSHOT,
        on_event: Callable[[Event], None] = lambda event: None,
        wake_compactor: Callable[[], None] = lambda: None,
        on_writing: Callable[[], None] = lambda: None,
        on_beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._image = store, image
        self._wake_compactor = wake_compactor
        self.geometry = store.geometry
        self._cut, self._numbers = store.cut, store.cut.numbers
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._gate, self.size = Gate(self._changed), BufferSize(store)
        self._pace, self._heartbeat = Pace(), Heartbeat(store.control, image, on_writing, self._beat)
        self._on_beat = on_beat
        self._syncer = Syncer(image)
        image.shortest_bytes = image.size_bytes - unpack_missing(store.cut.numbers[CutCounter.MISSING_BYTES])
        image.on_short = self._note_short
        self._is_power = store.header.durability is Durability.POWER
        releases = store.releases
        chain = Chain(store, releases)
        self.pressing = Pressing(store, self._changed, self._gate, wake_compactor)
        self.ending = Ending(
            store,
            self._changed,
            self._gate,
            self.pressing,
            self._discard,
            wake_compactor,
            on_event,
            chain.tell_of_change,
        )
        self.room = Room(store, policy, self.size, self._changed, self.pressing, self.ending, on_event)
        self._claiming = Claiming(
            store,
            image,
            self._lock,
            self._changed,
            self._gate,
            self.room,
            self.pressing,
            self.ending,
            self.size,
            wake_compactor,
        )
        reliefs = Reliefs(store, self._lock, releases, self._claiming.claims)
        self.cuts = LiveCuts(store, self._lock, chain, reliefs, self.ending, self.size, wake_compactor)

    # --- reading ---------------------------------------------------------------------------------------------

    def try_read_into(self, view: memoryview, offset: int) -> bool:
        """Fill `view` from the image if that needs no wait."""
        if self._image.can_ask:
            return self._image.try_read_into([view], offset)
        now_ns = time.monotonic_ns()
        if not self._pace.is_quick(now_ns):
            return False
        self._image.read_into([view], offset)
        self._pace.note(now_ns)
        return True

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` from the image; may wait for the disk."""
        self._image.read_into([view], offset)

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`, clipped at the end of the image."""
        buffer = bytearray(self.geometry.clip(offset, length))
        if buffer:
            self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def holes(self, offset: int, stop: int) -> Iterator[Range]:
        """Those of the image there, as they are when they are asked for; may wait for the disk."""
        return self._image.holes(offset, stop)

    # --- writing ---------------------------------------------------------------------------------------------

    def try_write(self, offset: int, data: Data) -> bool:
        """Write all of `data`, or nothing and return False when that might wait.

        OSError: the image refused. OutOfRange: the write is empty or not inside the image.
        """
        first, end = self.geometry.span(offset, len(data))
        now_ns = time.monotonic_ns()
        if not self._pace.is_quick(now_ns) or not self._gate.try_enter(offset):
            return False
        try:
            if self._owes(first, end) and not self._claiming.try_preserve(first, end):
                return False
            self._heartbeat.beat(now_ns)
            if self.ending.is_suspect:
                return False
            self._write_image(offset, data)
            self._pace.note(now_ns)
        finally:
            self._gate.leave()
        return True

    def write(self, offset: int, data: Data) -> None:
        """Write all of `data`; waits for the disk, for room and for other writes where it must.

        OSError: the image refused. BufferFull: policy `break-write`, nothing of the piece that did not fit
        was written. OutOfRange: as for `try_write`. EngineClosed: the engine was closed while this waited.
        """
        view = memoryview(data)
        self.geometry.span(offset, len(view))
        start = offset
        for at, length in self.geometry.pieces(offset, len(view), self._claiming.max_blocks):
            self._gate.enter(at)
            try:
                self._preserve(at, length)
                self._begin_to_change()
                self._write_image(at, view[at - start : at - start + length])
            finally:
                self._gate.leave()

    def zero(self, offset: int, length: int, *, give_back: bool) -> None:
        """Make the range zeros, as `write` would, and with `give_back` free on the disk of the image.

        Raises the same. OSError(EOPNOTSUPP): the image cannot do that; then it is as before.
        """
        self.geometry.span(offset, length)
        stop = offset + length
        while offset < stop:
            self._gate.enter(offset)
            try:
                until = self._preserve_data(offset, stop)
                self._begin_to_change()
                self._syncer.unsynced_bytes += until - offset
                self._image.zero(offset, until - offset, give_back=give_back)
            finally:
                self._gate.leave()
            offset = until

    def _preserve_data(self, offset: int, stop: int) -> int:
        """Of a hole, nothing is replaced: it is zeros, whoever owes it. Who fills it meanwhile preserves it, for the
        same cut: there may have been another one while this waited, and then all is looked at again.

        Returns as far as it came: a piece, or to the end of a hole, whatever that takes."""
        step = self._claiming.max_blocks * self.geometry.block_bytes
        while True:
            cut = self._cut
            until = self._image.hole_end(offset, stop)
            if until < (piece_end := min(stop, (offset // step + 1) * step)):
                until = piece_end
                for start, end in between(list(self._image.holes(offset, until)), offset, until):
                    self._preserve(start, end - start)
            if self._cut is cut:
                return until

    def _preserve(self, offset: int, length: int) -> None:
        first, end = self.geometry.span(offset, length)
        if self._owes(first, end):
            self._claiming.preserve(first, end)

    def _begin_to_change(self) -> None:
        """After all that a write has looked at and stored, and before anything of the image changes."""
        self._heartbeat.beat(time.monotonic_ns())
        if self.ending.is_suspect:
            self.ending.look_at_store()

    def _owes(self, first: int, end: int) -> bool:
        """Whether a write to these blocks has anything to note before the image may change."""
        cut = self._cut
        return not (cut.settled.all_set(first, end) and cut.changed.all_set(first, end)) and self._numbers.is_kept

    def _write_image(self, offset: int, data: Data) -> None:
        self._syncer.unsynced_bytes += len(data)
        self._image.write(data, offset)

    def _beat(self) -> None:
        self.ending.glance_at_store()
        self._on_beat()

    def note_quiet(self) -> bool:
        """Record the image's modification time if no write came lately; False while writes go on."""
        return self._heartbeat.note_quiet(self._gate.under_way)

    def rest(self) -> bool:
        """Nobody has written for a while: give the ring's space back to the disk; False while it holds anything."""
        try:
            return self._claiming.empty_ring()
        except OSError:
            # A filesystem that takes nothing back now will not do so in a moment.
            return True

    def _note_short(self) -> None:
        """Readers of the snapshot look at this after they have read a block that is owed."""
        self._cut.numbers[CutCounter.MISSING_BYTES] = pack_missing(
            self._image.size_bytes - self._image.shortest_bytes
        )

    def note_times(self, mtime_ns: int) -> None:
        """The image's modification time is about to be set to `mtime_ns` on a user's behalf."""
        self._heartbeat.note_times(mtime_ns)

    # --- the next cut ----------------------------------------------------------------------------------------

    def _discard(self) -> None:
        self._claiming.discard()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Within this no live write is under way, and none begins. Waits for those that are. OSError: there can be
        no cut now.

        For a cut, or for those of several images in one instant: `begin_cut` may come within.
        """
        with self._gate.closed():
            # Nobody is about to write or to preserve; so the disk is waited for without the lock.
            if self._is_power:
                # What the new snapshot shows must not be undone by a power loss.
                self._syncer.sync_unasked()
            self._image.check_whole()
            yield

    def begin_cut(self, cut: Cut, facts: CutHeader, check_wanted: Callable[[], None] = lambda: None) -> list[Cut]:
        """From here on `cut` (prepared and empty) is the newest snapshot. The one before, if it has no name, has
        ended for its readers. What nobody needs any more is returned; the caller lets go of it when nobody waits.

        Waits for the writes under way; its own work takes the same time whatever the size of the image. After the
        waiting `check_wanted` may raise what it likes: then, as after an OSError, all is as before. One at a time.
        """
        with self.held():
            check_wanted()
            # Whatever may fail comes before the one step that cannot be taken back.
            preserver = self._claiming.new_preserver(cut)
            gone = self.cuts.enter(cut, facts)
            with self._lock:
                self._cut, self._numbers = cut, cut.numbers
                ended = self._claiming.begin_cut(cut, preserver)
                self.cuts.begin_cut(cut, self._claiming.claims)
                self._image.forget()
                self.room.begin_cut()
        with contextlib.suppress(OSError):
            ended.close()
        self._wake_compactor()
        return gone

    # --- the rest ----------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Make all live writes durable, as fsync of the image does; waits for the disk."""
        self._syncer.sync()

    def try_sync(self) -> bool:
        """The same, if it will not take long."""
        return self._syncer.try_sync()

    def trim(self) -> None:
        """Give back the resident memory of the mappings."""
        for cut in self._store.hold_cuts():
            cut.trim()
            cut.let_go()

    def close(self) -> None:
        """Writes that wait fail with EngineClosed; the image is synced. The store stays as it is."""
        self._claiming.close()
        self._image.sync()

    def seal(self) -> bool:
        """After `close`, with the compactor gone: make the store survive a restart. False: it was not drained.

        OSError: the store's disk refuses, or files of it were cut short.
        """
        if not self._store.is_whole:
            raise OSError(errno.EIO, "files of it were cut short or cannot be read")
        if self.size.staged_bytes():
            return False
        mtime_ns = self._image.identity().mtime_ns
        # The newest last: its seal says that the end was clean.
        for store in self._store.of_each_cut():
            write_seal(store, mtime_ns)
        return True
