"""The live image becomes the instant of a snapshot again, by live writes like any other.

    count    what differs, and whether all of it can be read: else nothing is begun
    note     in the store, on the disk: from here on the image is of two instants
    write    each block that the target does not have in the image, a piece at a time
    sync     the image
    note     goes

What is settled in no cut from the target on is what the image has, by the rule that readers go by, so only the rest
is looked at, and of that only what differs is written: a revert that was stopped anywhere is done again from the
start and writes what is left. Each write is preserved for the newest snapshot like any live write. But none of them
ends a snapshot, for the target may be the one that would give way: without room the revert stops (BufferFull).

Free blocks of the target hold nothing: its filesystem reads none of them, and what the image has there is left. To
write zeros would cost time, and room for what they replace, and give nobody anything.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from cow.disk.blocks import Kind, explain_through
from cow.disk.cut import Cut
from cow.disk.revert_note import remove_revert_note, write_revert_note
from cow.disk.store import Store
from cow.errors import BlockReleased, Damaged, SnapshotEnded
from cow.live.engine import LiveEngine

# What is read, compared and written at once: twice as much memory is used.
_PIECE_BYTES: Final = 1 << 20
_WITH_A_COPY: Final = frozenset({Kind.STAGED, Kind.STORED})


class Revert:
    """To the cut `generation`, whose readers read with `read_target(view, offset)`. Nobody else writes meanwhile.

    `blocks` is how many may differ, known when the first is written, `done_blocks` how many of them are looked at.
    """

    def __init__(
        self, store: Store, engine: LiveEngine, generation: int, read_target: Callable[[memoryview, int], None]
    ) -> None:
        self._store, self._engine, self._generation, self._read_target = store, engine, generation, read_target
        self._geometry, self._files = store.geometry, store.files
        self.blocks = self.done_blocks = self.written_bytes = 0

    def check(self) -> None:
        """BlockReleased, Damaged: it cannot be reverted to. In a thread."""
        with self._held_cuts() as cuts:
            self._count(cuts)

    def run(self, check_wanted: Callable[[], None] = lambda: None) -> None:
        """In a thread; waits for the disk. `check_wanted` may raise what it likes between two pieces.

        BlockReleased, Damaged, SnapshotEnded before the note is there: nothing was changed. Whatever is raised later
        leaves the note, and the same or another revert goes on. BufferFull: there is no room for what is replaced.
        OSError: the image's, or the store's.
        """
        with self._held_cuts() as cuts:
            self.blocks = self._count(cuts)
            facts = self._store.header.cut_of(self._generation)
            if facts is None or facts.is_hidden:
                raise SnapshotEnded(f"cut {self._generation} has ended")
            write_revert_note(self._store.path, facts.snapshot_id, self._files)
            room = self._engine.room
            room.spares_snapshots = True
            try:
                for first, end in self._pieces(cuts):
                    check_wanted()
                    self._take_back(first, end)
                    self.done_blocks += end - first
            finally:
                room.spares_snapshots = False
        self._engine.sync()
        remove_revert_note(self._store.path, self._files)

    @contextlib.contextmanager
    def _held_cuts(self) -> Iterator[Sequence[Cut]]:
        """The target and those after it."""
        cuts = self._store.hold_cuts()
        try:
            yield [cut for cut in cuts if cut.generation >= self._generation]
        finally:
            for cut in cuts:
                cut.let_go()

    def _count(self, cuts: Sequence[Cut]) -> int:
        """The blocks that the image may have otherwise. BlockReleased, Damaged: one of them cannot be read."""
        count = 0
        for kind, first, end, _ in self._explained(cuts):
            if kind in _WITH_A_COPY:
                count += end - first
            elif kind is Kind.RELEASED:
                raise BlockReleased(first)
            elif kind not in (Kind.OWED, Kind.FREE):
                raise Damaged("its content is lost", first)
        return count

    def _explained(self, cuts: Sequence[Cut]) -> Iterator[tuple[Kind, int, int, int]]:
        return explain_through(cuts, 0, self._geometry.block_count)

    def _pieces(self, cuts: Sequence[Cut]) -> Iterator[tuple[int, int]]:
        """The same blocks in order, neighbours together, as many at once as a piece has."""
        most = max(1, _PIECE_BYTES // self._geometry.block_bytes)
        start = stop = 0
        for kind, first, end, _ in self._explained(cuts):
            if kind not in _WITH_A_COPY:
                continue
            if first != stop:
                if start < stop:
                    yield start, stop
                start = first
            stop = end
            while stop - start >= most:
                yield start, start + most
                start += most
        if start < stop:
            yield start, stop

    def _take_back(self, first: int, end: int) -> None:
        offset, length = self._geometry.extent(first, end)
        wanted = bytearray(length)
        self._read_target(memoryview(wanted), offset)
        for at, stop in self._different(wanted, self._present(offset, length)):
            self._engine.write(offset + at, memoryview(wanted)[at:stop])
            self.written_bytes += stop - at

    def _present(self, offset: int, length: int) -> bytes | None:
        """What the image has; None when it cannot be read: then all of it is written, which may mend it."""
        try:
            return self._engine.read(offset, length)
        except OSError:
            return None

    def _different(self, wanted: bytearray, present: bytes | None) -> Iterator[tuple[int, int]]:
        """Where the blocks are that differ, neighbours together."""
        if present is None:
            yield 0, len(wanted)
            return
        if wanted == present:
            return
        size, start = self._geometry.block_bytes, None
        for at in range(0, len(wanted), size):
            if wanted[at : at + size] == present[at : at + size]:
                if start is not None:
                    yield start, at
                start = None
            elif start is None:
                start = at
        if start is not None:
            yield start, len(wanted)
