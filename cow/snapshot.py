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

An older cut has in the later ones what it does not have itself, and what is owed in the newest too is in the image.
If there is a newer one after the image was read, the bytes may be of its time. Nothing of an older cut changes any
more, but that another one is merged into it, which has the same content for it. So a list of cuts that is out of date
is as good as the present one, up to its newest, and which of them has a block need not be asked for each read
(`FrozenCuts`). But the index of a cut that was merged is not kept up to date: what is not found there any more is
looked for again with the present list. And what the maps said before a longer list was read says nothing together
with that: one that is not in it may have been merged meanwhile. So the look begins again at the first.

A block goes owed -> staged -> segment, and its record may be squeezed into another segment once, so every step
is repeated a few times at most.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from cow.disk.blocks import Kind, classify
from cow.disk.cut import Cut
from cow.disk.header import Header, read_header
from cow.disk.image import Image
from cow.disk.layout import KEPT_STATES, Counter, CutCounter, State, unpack_missing
from cow.disk.store import Store
from cow.errors import BlockReleased, Damaged, SnapshotEnded, SnapshotLost, WouldWait
from cow.faults import missing_pages
from cow.frozen import NOWHERE, UNCLEAR, FrozenCuts
from cow.preserved import Desk, PreservedReader

# Places in the pages as plain numbers: to look a member of an enumeration up takes longer than to use it.
_GENERATION: Final = Counter.GENERATION.value
_HEADERS: Final = Counter.HEADERS.value
_STATE: Final = CutCounter.STATE.value
_UNREADABLE: Final = CutCounter.UNREADABLE.value
_FREE_BLOCKS: Final = CutCounter.FREE_BLOCKS.value
_MISSING_BYTES: Final = CutCounter.MISSING_BYTES.value
_NONE: Final = State.NONE.value
_OWED: Final = Kind.OWED
# No list of cuts has this number.
_NEVER: Final = -1
_FREE: Final = Kind.FREE


class LongerList(Exception):
    """There is a later cut than those that were read through."""


class SnapshotReader:
    """The frozen image of one cut, the one that `store` has; one reader serves one thread at a time."""

    def __init__(self, store: Store, image: Image) -> None:
        self._store, self._image, self._cut = store, image, store.cut
        self._control, self._numbers = store.control, store.cut.numbers
        self._generation = store.cut.generation
        self._end = store.end_of(self._generation)
        self.geometry = store.geometry
        self._desk = Desk()
        self._own = PreservedReader(store, store.cut, self._desk, own=True)
        # The cut itself and those after it, as far as they are known; whether all of them are looked through.
        self._links = [self._own]
        self._frozen = FrozenCuts((), self.geometry.block_count)
        self._looks_through = False
        self._headers = self._control[_HEADERS]

    def check(self) -> None:
        """Raise what a read now would raise for the snapshot as a whole."""
        numbers = self._numbers
        headers, generation = self._control[_HEADERS], self._control[_GENERATION]
        state, is_unreadable = numbers[_STATE], numbers[_UNREADABLE]
        # After all of it was looked at, here and by the read: any of it may have been zeros in the place of what is
        # gone. What follows from all other maps is an error then; from this one, that the image is read.
        for link in self._links if self._looks_through else {self._own, self._links[-1]}:
            if not link.settled.has_its_size:
                raise Damaged("files of it were cut short or cannot be read")
        if missing_pages[0] and not is_unreadable and not self._is_whole():
            raise Damaged("files of it were cut short or cannot be read")
        if headers != self._headers or generation != self._links[-1].generation:
            self._follow(headers, generation)
        if state not in KEPT_STATES and state != _NONE:
            raise SnapshotLost(f"the snapshot is {numbers.state.name.lower()}")
        if state == _NONE or self._end[0] == self._generation:
            # Deleted or lost: what is deleted is not in the list any more, though the number may not say so yet.
            self._follow(headers, generation)
            raise SnapshotLost("the snapshot's store is damaged as a whole")
        if is_unreadable:
            raise SnapshotLost("the snapshot's store is damaged as a whole")

    def _is_whole(self) -> bool:
        return self._store.can_hold_a_cut and all(link.cut.is_whole for link in self._links)

    def _follow(self, headers: int, generation: int) -> None:
        """There is another list of cuts: SnapshotEnded when it does not show this one."""
        header = self._shown_header()
        while True:
            try:
                added = self._added(header, generation)
                break
            except FileNotFoundError:
                # Merged between the two looks, if there is a later list.
                before, header = header, self._shown_header()
                if header == before:
                    raise
        links = [*self._links, *added]
        merged = [link for link in links[1:-1] if header.cut_of(link.generation) is None]
        self._headers = headers
        # All of it or nothing: a list with holes would read what is of another time.
        self._links = [link for link in links if link not in merged]
        self._frozen = FrozenCuts(self._links[1:-1], self.geometry.block_count)
        for link in merged:
            link.cut.let_go()

    def _shown_header(self) -> Header:
        """SnapshotEnded: it does not show this cut."""
        header = read_header(self._store.path)
        if header is None:
            raise Damaged("the store has lost its header")
        mine = header.cut_of(self._generation)
        if mine is None or mine.is_hidden:
            raise SnapshotEnded("this snapshot was replaced by a newer one, or deleted")
        return header

    def _added(self, header: Header, generation: int) -> list[PreservedReader]:
        """The cuts of the list after those that are known; later ones than the numbers tell of, which is
        `generation`, may still be taken back."""
        added: list[PreservedReader] = []
        try:
            for one in header.cuts:
                if self._links[-1].generation < one.generation <= generation:
                    cut = self._hold(one.generation, header)
                    added.append(PreservedReader(self._store, cut, self._desk, own=False))
        except BaseException:
            for link in added:
                link.cut.let_go()
            raise
        return added

    def _hold(self, generation: int, header: Header) -> Cut:
        looked_through = self._store.looked_through
        if self._desk.may_wait:
            opening = partial(self._store.open_cut, generation, writable=False, header=header)
            return looked_through.hold(generation, opening)
        cut = looked_through.try_hold(generation)
        if cut is None:
            raise WouldWait
        return cut

    def try_read(self, view: memoryview, offset: int) -> bool:
        """`read_into`, unless the disk would have to be waited for: then False, and `view` holds nothing."""
        self._desk.may_wait = False
        try:
            self.read_into(view, offset)
        except WouldWait:
            return False
        finally:
            self._desk.may_wait = True
        return True

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

    def used_bytes(self, offset: int, length: int) -> int:
        """How much of this is neither free nor a hole; 0 only where reads give zeros, or an error. May wait.

        SnapshotLost, SnapshotEnded: as for `read_into`.
        """
        first, end = self.geometry.span(offset, length)
        free_blocks = self._cut.free.count_set(first, end) if self._numbers[_FREE_BLOCKS] else 0
        used_bytes = min(length, (end - first - free_blocks) * self.geometry.block_bytes)
        if used_bytes and self._image.is_hole(offset, length):
            # After the look at the image: a write since then, of whichever cut, has preserved what was there.
            self.check()
            if not any(link.cut.settled.any_set(first, end) for link in self._links):
                return 0
        return used_bytes

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
        self._looks_through = False
        try:
            self._read(view, offset, first, end)
            is_released = self._cut.released.any_set(first, end)
        finally:
            # Damage found in a snapshot that is over is no damage: say that it is over.
            self.check()
        if is_released:
            raise BlockReleased(first)

    def _read(self, view: memoryview, offset: int, first: int, end: int) -> None:
        while True:
            headers = self._control[_HEADERS]
            try:
                self._read_once(view, offset, first, end)
                if self._frozen.is_still_so():
                    return
            except LongerList:
                # What is not in it may have been merged since into any that was looked at.
                continue
            except Damaged:
                # Merged, and then moved: the list tells who has it now. It is renamed in before the number says so,
                # and the compactor may have seen it.
                before, now = self._links, self._control[_HEADERS]
                self._follow(now, self._control[_GENERATION])
                if headers == now and self._links == before:
                    raise

    def _read_once(self, view: memoryview, offset: int, first: int, end: int) -> None:
        links, frozen = self._links, self._frozen
        if len(links) == 1:
            self._read_from(0, view, offset, first, end)
            return
        for run in self._own.explain(first, end):
            if run[0] is not _OWED:
                self._own.read(view, offset, run)
                continue
            self._check_there(self._own, run[1], run[2])
            for place, low, high in frozen.runs(run[1], run[2]):
                if place == NOWHERE:
                    self._read_from(len(links) - 1, view, offset, low, high)
                elif place == UNCLEAR:
                    self._looks_through = True
                    self._read_from(1, view, offset, low, high)
                else:
                    self._read_there(links[place], view, offset, low, high)

    def _read_there(self, link: PreservedReader, view: memoryview, offset: int, first: int, end: int) -> None:
        """What is settled there, and has been before."""
        for run in link.explain(first, end):
            if run[0] is _OWED:
                raise Damaged("files of it were cut short or cannot be read", first)
            link.read(view, offset, run)

    def _read_from(self, at: int, view: memoryview, offset: int, first: int, end: int) -> None:
        """What the cut number `at` of the list has of the blocks from there, the rest from those after it."""
        links = self._links
        link = links[at]
        if at and not link.numbers.is_kept:
            raise Damaged("a later cut that it is read through is lost", first)
        for run in link.explain(first, end):
            if run[0] is not _OWED:
                link.read(view, offset, run)
            elif at + 1 < len(links):
                self._check_there(link, run[1], run[2])
                self._read_from(at + 1, view, offset, run[1], run[2])
            else:
                self._check_newest()
                self._read_image(at, view, offset, run[1], run[2])

    def _read_image(self, newest: int, view: memoryview, offset: int, first: int, end: int) -> None:
        skip, at, count = self.geometry.overlap(first, end, offset, len(view))
        start, _ = self.geometry.extent(first, end)
        owed = [view[at : at + count]]
        link = self._links[newest]
        if self._desk.may_wait:
            self._image.read_into(owed, start + skip)
        elif not self._image.try_read_into(owed, start + skip):
            raise WouldWait
        for run in link.explain(first, end):
            if run[0] is not _OWED:
                link.read(view, offset, run)
            else:
                self._check_newest()
                self._check_there(link, run[1], run[2])

    def _check_newest(self) -> None:
        """LongerList: there was a later cut than those that were known. No number: the page is gone, which is found
        out last."""
        newest, looked_for = self._links[-1].generation, 0
        while (generation := self._control[_GENERATION]) not in (0, looked_for, self._links[-1].generation):
            self._follow(self._control[_HEADERS], generation)
            # It may be gone by then, and there is a later one.
            looked_for = generation
        if self._links[-1].generation != newest:
            raise LongerList

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

    def rest(self) -> None:
        """Nobody reads for a while: keep nothing but the snapshot's own files open, nor in memory."""
        links, self._links = self._links, [self._own]
        self._frozen, self._headers = FrozenCuts((), self.geometry.block_count), _NEVER
        self._desk.clear()
        for link in links[1:]:
            link.cut.let_go()

    def forget(self) -> None:
        """The same, and no file of a segment open, whoever reads; he opens what he needs."""
        self.rest()
        self._store.open_segments.close()

    def close(self) -> None:
        self.forget()
