"""Which cuts are open for reading, with the readers of each, and which of them rest."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace

from cow import Cut, Image, SeekingReader, Store

# So many snapshots, those that were read last, keep in memory what makes the next reads quick.
_READ_LATELY = 8


class OpenCut:
    """One cut as the view shows it. A reader serves one thread: one for the event loop, one for each that waits."""

    def __init__(self, store: Store, image: Image) -> None:
        self.store, self._image = store, image
        self.generation = store.cut.generation
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


class OpenCuts:
    """Those of `present` that somebody has opened, until it lists them no more. `present` itself has the newest
    open."""

    def __init__(self, present: Store, image: Image) -> None:
        self.present, self._image = present, image
        self._open: dict[int, OpenCut] = {}
        self._read_lately: OrderedDict[OpenCut, None] = OrderedDict()

    def show(self, store: Store) -> None:
        """`store` is present from now on: let go of those that its header does not list."""
        before, self.present = self.present, store
        if before.cut is not store.cut:
            before.cut.let_go()
        for generation in self._open.keys() - {one.generation for one in store.header.shown}:
            gone = self._open.pop(generation)
            self._read_lately.pop(gone, None)
            gone.close()
        for opened in self._open.values():
            opened.let_go_of_lost()
        # Some may be of what is over, and take room as long as they are open.
        store.open_segments.close()

    def get(self, generation: int) -> OpenCut | None:
        """None: nobody has opened it."""
        return self._open.get(generation)

    def begin(self, generation: int) -> OpenCut:
        """The first opens that cut, which is listed. OSError, SnapshotEnded: it cannot be."""
        opened = OpenCut(replace(self.present, cut=self.hold(generation)), self._image)
        self._open[generation] = opened
        return opened

    def hold(self, generation: int) -> Cut:
        """The cut, opened by anybody or not, for the caller to let go. OSError, CowError: it cannot be opened."""
        opened, store = self._open.get(generation), self.present
        if opened is not None:
            return opened.store.cut.hold()
        if generation == store.cut.generation:
            return store.cut.hold()
        return store.open_cut(generation, writable=False)

    def read_of(self, generation: int) -> OpenCut | None:
        """As `get`; something of it is read now."""
        opened = self._open.get(generation)
        if opened is None:
            return None
        if opened in self._read_lately:
            self._read_lately.move_to_end(opened)
            return opened
        opened.begin()
        self._read_lately[opened] = None
        if len(self._read_lately) > _READ_LATELY:
            self._read_lately.popitem(last=False)[0].rest()
        return opened

    def trim(self) -> None:
        """Give back the resident memory of the mappings."""
        for opened in self._open.values():
            opened.reader.trim()
