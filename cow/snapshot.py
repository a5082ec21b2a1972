"""Reading the snapshot: each block from the side buffer or from the image, without locks.

The live server may preserve, the compactor may move and the imager may release any block at any instant
meanwhile. What makes a plain read right:

1.  An owed block is read from the image, then `settled` is looked at again. If it was set meanwhile, the
    bytes may be new ones: the block is taken from the side buffer instead.
2.  A staged block is copied, then its index entry is looked at again. If it is the same, the slot was not
    used again before the copy ended; if not, the block has moved to a segment.
3.  Everything from the side buffer has a checksum. A wrong one is an error, never bytes.
4.  `released`, the snapshot's state and the cut are looked at last: each of them is stored before the
    first write that takes something away from this read.

An older cut has in the later ones what it does not have itself: each is looked through up to the newest, and what is
owed there too is in the image. If there is a newer one after the image was read, the bytes may be of its time.
Nothing of an older cut changes any more, but that another one is merged into it, which has the same content for it;
so a list of cuts that is out of date is as good as the present one, up to its newest. But what the maps said before a
longer list was read says nothing together with that: one that is not in it may have been merged meanwhile. So the
look begins again at the first.

A block goes owed -> staged -> segment, and its record may be squeezed into another segment once, so every step
is repeated a few times at most.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from cow.disk.blocks import Kind, classify
from cow.disk.header import read_header
from cow.disk.image import Image
from cow.disk.layout import KEPT_STATES, Counter, CutCounter, unpack_missing
from cow.disk.store import Store
from cow.errors import BlockReleased, Damaged, SnapshotEnded, SnapshotLost, WouldWait
from cow.faults import missing_pages
from cow.preserved import PreservedReader

# Places in the pages as plain numbers: to look a member of an enumeration up takes longer than to use it.
_GENERATION: Final = Counter.GENERATION.value
_HEADERS: Final = Counter.HEADERS.value
_STATE: Final = CutCounter.STATE.value
_UNREADABLE: Final = CutCounter.UNREADABLE.value
_FREE_BLOCKS: Final = CutCounter.FREE_BLOCKS.value
_MISSING_BYTES: Final = CutCounter.MISSING_BYTES.value
_OWED: Final = Kind.OWED
_FREE: Final = Kind.FREE


class _LongerList(Exception):
    """There is a later cut than those that were read through."""


class SnapshotReader:
    """The frozen image of one cut, the one that `store` has; one reader serves one thread at a time."""

    def __init__(self, store: Store, image: Image) -> None:
        self._store, self._image, self._cut = store, image, store.cut
        self._control, self._numbers = store.control, store.cut.numbers
        self._generation = store.cut.generation
        self._end = store.end_of(self._generation)
        self.geometry = store.geometry
        self._own = PreservedReader(store, store.cut, own=True)
        # The cut itself and those after it, as far as they are known.
        self._links = [self._own]
        self._headers = self._control[_HEADERS]
        self._may_wait = True

    def check(self) -> None:
        """Raise what a read now would raise for the snapshot as a whole."""
        numbers = self._numbers
        headers, generation = self._control[_HEADERS], self._control[_GENERATION]
        state, is_unreadable = numbers[_STATE], numbers[_UNREADABLE]
        # After all of it was looked at, here and by the read: any of it may have been zeros in the place of what is
        # gone. What follows from all other maps is an error then; from this one, that the image is read.
        for link in self._links:
            if not link.settled.has_its_size:
                raise Damaged("files of it were cut short or cannot be read")
        if missing_pages[0] and not is_unreadable and not self._is_whole():
            raise Damaged("files of it were cut short or cannot be read")
        if headers != self._headers or generation != self._links[-1].generation:
            self._follow(headers, generation)
        if state not in KEPT_STATES:
            raise SnapshotLost(f"the snapshot is {numbers.state.name.lower()}")
        if self._end[0] == self._generation:
            # Deleted or lost: what is deleted is not in the list any more, though the number may not say so yet.
            self._follow(headers, generation)
            raise SnapshotLost("the snapshot's store is damaged as a whole")
        if is_unreadable:
            raise SnapshotLost("the snapshot's store is damaged as a whole")

    def _is_whole(self) -> bool:
        return self._store.can_hold_a_cut and all(link.cut.is_whole for link in self._links)

    def _follow(self, headers: int, generation: int) -> None:
        """There is another list of cuts: SnapshotEnded when it does not show this one."""
        if not self._may_wait:
            raise WouldWait
        header = read_header(self._store.path)
        mine = None if header is None else header.cut_of(self._generation)
        if header is None or mine is None or mine.is_hidden:
            raise SnapshotEnded("this snapshot was replaced by a newer one, or deleted")
        for one in header.cuts:
            # A later one than the numbers tell of may still be taken back.
            if self._links[-1].generation < one.generation <= generation:
                opening = partial(self._store.open_cut, one.generation, writable=False, header=header)
                cut = self._store.looked_through.hold(one.generation, opening)
                self._links.append(PreservedReader(self._store, cut, own=False))
        self._headers = headers

    def try_read(self, view: memoryview, offset: int) -> bool:
        """`read_into`, unless the disk would have to be waited for: then False, and `view` holds nothing."""
        self._set_may_wait(False)
        try:
            self.read_into(view, offset)
        except WouldWait:
            return False
        finally:
            self._set_may_wait(True)
        return True

    def _set_may_wait(self, may_wait: bool) -> None:
        self._may_wait = may_wait
        for link in self._links:
            link.may_wait = may_wait

    def reads_as_zeros(self, offset: int, length: int) -> bool:
        """Whether a read would find nothing but free blocks, so that it can be answered without one.

        SnapshotLost, SnapshotEnded: as for `read_into`.
        """
        first, end = self.geometry.span(offset, length)
        # Most reads are not of free blocks, and then it has to be quick.
        if not self._numbers[_FREE_BLOCKS] or not self._cut.free.all_set(first, end):
            return False
        is_free = all(kind is _FREE for kind, *_ in classify(self._cut, first, end))
        if is_free:
            self.check()
        return is_free

    def read(self, offset: int, length: int) -> bytes:
        """`length` bytes at `offset`, clipped at the end of the image."""
        buffer = bytearray(self.geometry.clip(offset, length))
        if buffer:
            self.read_into(memoryview(buffer), offset)
        return bytes(buffer)

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the snapshot's bytes at `offset`.

        Damaged, SnapshotLost, SnapshotEnded, BlockReleased or OSError: `view` holds nothing of use.
        """
        first, end = self.geometry.span(offset, len(view))
        try:
            self._read_through(view, offset, first, end)
            is_released = self._cut.released.any_set(first, end)
        finally:
            # Damage found in a snapshot that is over is no damage: say that it is over.
            self.check()
        if is_released:
            raise BlockReleased(first)

    def _read_through(self, view: memoryview, offset: int, first: int, end: int) -> None:
        while True:
            try:
                return self._read_from(0, view, offset, first, end)
            except _LongerList:
                # What is not in it may have been merged since into any that was looked at.
                continue

    def _read_from(self, at: int, view: memoryview, offset: int, first: int, end: int) -> None:
        """What the cut number `at` of the list has of the blocks from there, the rest from those after it."""
        link = self._links[at]
        if at and not link.numbers.is_kept:
            raise Damaged("a later cut that it is read through is lost", first)
        for run in link.explain(first, end):
            if run[0] is not _OWED:
                link.read(view, offset, run)
            elif at + 1 < len(self._links):
                self._check_there(link, run[1], run[2])
                self._read_from(at + 1, view, offset, run[1], run[2])
            else:
                self._check_newest()
                self._read_image(at, view, offset, run[1], run[2])

    def _read_image(self, newest: int, view: memoryview, offset: int, first: int, end: int) -> None:
        skip, at, count = self.geometry.overlap(first, end, offset, len(view))
        start, _ = self.geometry.extent(first, end)
        owed = [view[at : at + count]]
        if self._may_wait:
            self._image.read_into(owed, start + skip)
        elif not self._image.try_read_into(owed, start + skip):
            raise WouldWait
        link = self._links[newest]
        for run in link.explain(first, end):
            if run[0] is not _OWED:
                link.read(view, offset, run)
            else:
                self._check_newest()
                self._check_there(link, run[1], run[2])

    def _check_newest(self) -> None:
        """_LongerList: there was a later cut than those that were known. No number: the page is gone, which is found
        out last."""
        newest, looked_for = self._links[-1].generation, 0
        while (generation := self._control[_GENERATION]) not in (0, looked_for, self._links[-1].generation):
            self._follow(self._control[_HEADERS], generation)
            # It may be gone by then, and there is a later one.
            looked_for = generation
        if self._links[-1].generation != newest:
            raise _LongerList

    def _check_there(self, link: PreservedReader, first: int, end: int) -> None:
        """What the image lost when it was cut short, while that cut owed these blocks, may be zeros now: there, and
        in what later cuts preserved of it."""
        number = link.numbers[_MISSING_BYTES]
        if number and (missing_bytes := unpack_missing(number)):
            start, length = self.geometry.extent(first, end)
            if start + length > self.geometry.image_bytes - missing_bytes:
                raise Damaged("the image was cut short", first)

    def trim(self) -> None:
        """Give back the resident memory of the mappings."""
        for link in self._links:
            link.cut.trim()

    def forget(self) -> None:
        """Hold no file of a segment open; a read opens what it needs."""
        for link in self._links:
            link.close()

    def close(self) -> None:
        for link in self._links:
            link.close()
        for link in self._links[1:]:
            link.cut.let_go()
