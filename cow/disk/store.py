"""An open store: its header, the files that all its cuts have in common, and the present cut."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cow.disk.bitmaps import bitmap_bytes
from cow.disk.cut import Cut, open_cut
from cow.disk.directory import (
    BITMAP_NAMES,
    CONTROL_NAME,
    INDEX_NAME,
    NUMBERS_NAME,
    SEGMENTS_NAME,
    STAGING_NAME,
    TOUCHED_NAME,
    cut_path,
)
from cow.disk.files import Files
from cow.disk.header import Header, read_header
from cow.disk.layout import ENTRY_BYTES, PAGE_OF_NUMBERS_BYTES, Counter, CutCounter, Durability
from cow.disk.numbers import Control, Page, SharedPages
from cow.disk.plain import check_directory
from cow.disk.releases import ReleaseQueue
from cow.disk.segment_files import OpenSegments
from cow.disk.staging import Staging, file_bytes
from cow.errors import SnapshotEnded, StoreDamaged, StoreError
from cow.geometry import Geometry

_NEVER: Final = memoryview(bytes(8)).cast("Q")


class LookedThrough:
    """The cuts that readers of one process look through, each opened once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cuts: dict[int, Cut] = {}

    def try_hold(self, generation: int) -> Cut | None:
        """To be let go; None when nobody holds it yet."""
        cut = self._cuts.get(generation)
        if cut is not None:
            with contextlib.suppress(SnapshotEnded):
                return cut.hold()
        return None

    def hold(self, generation: int, open_it: Callable[[], Cut]) -> Cut:
        """The same; `open_it` when nobody holds it."""
        with self._lock:
            cut = self.try_hold(generation)
            if cut is not None:
                return cut
            self._cuts = {number: one for number, one in self._cuts.items() if one.is_open}
            cut = self._cuts[generation] = open_it()
            return cut


@dataclass(slots=True)
class Store:
    """An open store with its cuts, which it holds: the present one and, for who opened the store as a whole, the
    `older` ones, oldest first. `lock_fd` is -1 for a reader."""

    path: Path
    header: Header
    control: Control
    staging: Staging
    cut: Cut
    files: Files
    lock_fd: int = -1
    pages: SharedPages | None = None
    older: tuple[Cut, ...] = ()
    looked_through: LookedThrough = field(default_factory=LookedThrough)
    open_segments: OpenSegments = field(default_factory=OpenSegments)
    _last_generation: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def end_cut(self, generation: int) -> None:
        """Nothing of the cut is to be read any more: before the first write that takes something from it."""
        if self.pages is not None:
            self.pages.end(generation)

    def end_of(self, generation: int) -> memoryview:
        """See `SharedPages.end_of`. A reader from outside the instance is never told."""
        return _NEVER if self.pages is None else self.pages.end_of(generation)

    def ended(self) -> frozenset[int]:
        """The generations of which `end_cut` was told lately, by whichever process of the instance."""
        return frozenset() if self.pages is None else self.pages.ended()

    @property
    def releases(self) -> ReleaseQueue:
        """What the compactor has to give back; of an instance's own, else nobody would ever take it."""
        return ReleaseQueue((self.pages or SharedPages()).releases)

    def page_of(self, number: Counter | CutCounter) -> Page:
        """Where the number is, for the present cut."""
        return self.control if isinstance(number, Counter) else self.cut.numbers

    def hold_cut(self) -> Cut:
        """The present cut, to be let go."""
        with self._lock:
            return self.cut.hold()

    def open_cut(self, generation: int, *, writable: bool, header: Header | None = None) -> Cut:
        """Another look at a cut of this instance; whoever opens it lets go of it. `header`: a later one."""
        return open_cut(
            self.path,
            generation,
            header or self.header,
            self.files,
            writable=writable,
            pages=self.pages,
            fill=False,
        )

    def next_generation(self) -> int:
        """A number that no cut of this store has had, and no debris of one."""
        while True:
            with self._lock:
                cuts = self.cuts
                generation = self._last_generation = max(self._last_generation, self.cut.generation) + 1
            is_shared = any(SharedPages.share_a_page(generation, cut.generation) for cut in cuts)
            # Debris may be in the way.
            if not is_shared and not os.path.lexists(cut_path(self.path, generation)):
                return generation

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """All that are open here, oldest first."""
        return *self.older, self.cut

    @property
    def newest_shown(self) -> Cut | None:
        """The newest snapshot that there is for users, of those that are open here."""
        shown = self.header.shown
        return next((cut for cut in reversed(self.cuts) if shown and cut.generation == shown[-1].generation), None)

    def of_each_cut(self) -> list[Store]:
        """The store as it was when each of its cuts was the newest, oldest first; not to be closed."""
        cuts = self.cuts
        return [replace(self, cut=cut, older=cuts[:at], _lock=threading.Lock()) for at, cut in enumerate(cuts)]

    def let_go_older(self) -> None:
        """Whoever follows the list of cuts himself opens them when he needs them."""
        while self.older:
            *self_older, last = self.older
            self.older = tuple(self_older)
            last.let_go()

    def hold_cuts(self) -> list[Cut]:
        """All that are open here, oldest first, to be let go."""
        with self._lock:
            return [cut.hold() for cut in self.cuts]

    def enter(self, cut: Cut, header: Header) -> list[Cut]:
        """`cut` is the present one from here on, and the header has another list. Those it does not name any more
        are over, and the caller's to let go."""
        named = {one.generation for one in header.cuts}
        with self._lock:
            before = self.cuts if cut is not self.cut else self.older
            self.older = tuple(one for one in before if one.generation in named)
            self.cut, self.header = cut, header
        gone = [one for one in before if one.generation not in named]
        for one in gone:
            one.is_over = True
        return gone

    def present(self, *, writable: bool) -> Store:
        """The same store in a process that may have been started long after this was opened."""
        while True:
            header = read_header(self.path)
            if header is None:
                raise StoreDamaged(str(self.path), "has lost its header")
            if header.cut.generation == self.cut.generation and self.cut.is_open:
                self.header = header
                return self
            try:
                cut = self.open_cut(header.cut.generation, writable=writable, header=header)
            except FileNotFoundError:
                # Gone between the two looks, if there is a later one.
                later = read_header(self.path)
                if later is None or later.cut.generation == header.cut.generation:
                    raise
            else:
                return replace(self, header=header, cut=cut, older=(), _lock=threading.Lock())

    @property
    def geometry(self) -> Geometry:
        return self.header.geometry

    @property
    def can_hold_a_cut(self) -> bool:
        """Whether what all cuts share is whole: the numbers, and the ring."""
        return self.control.file.is_whole and self.staging.file.is_whole

    @property
    def is_whole(self) -> bool:
        """Whether all that is mapped for the present cut is: see `MappedFile.is_whole`."""
        return self.can_hold_a_cut and self.cut.is_whole

    def close(self) -> None:
        for cut in self.cuts:
            if cut.is_open:
                cut.let_go()
        self.staging.close()
        self.control.close()
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1


def open_parts(path: Path, header: Header, files: Files, *, writable: bool, lock_fd: int = -1) -> Store:
    """Open all files that `header` promises; OSError or ValueError when one is missing or too short."""
    pages = SharedPages() if writable else None
    shared = None if pages is None else pages.control
    check_directory(path / SEGMENTS_NAME)
    control = Control(path / CONTROL_NAME, files, writable=writable, shared=shared)
    staging = Staging(path / STAGING_NAME, header.block_bytes, header.staging_slots, files, writable=writable)
    *older, cut = (
        open_cut(path, one.generation, header, files, writable=writable, pages=pages) for one in header.cuts
    )
    return Store(path, header, control, staging, cut, files, lock_fd, pages, tuple(older))


def open_reader(path: Path, files: Files) -> Store:
    """The store for looking only: another process may be writing it."""
    header = read_header(path)
    if header is None:
        raise StoreError(str(path), "holds no snapshot")
    return open_parts(path, header, files, writable=False)


def expected_files(path: Path, header: Header, generation: int) -> dict[str, tuple[Path, int]]:
    """The mapped files of a cut, and those that all cuts have in common: where, and how many bytes long."""
    cut, count = cut_path(path, generation), header.geometry.block_count
    expected = {name: (cut / name, bitmap_bytes(count)) for name in BITMAP_NAMES}
    expected[INDEX_NAME] = cut / INDEX_NAME, count * ENTRY_BYTES
    if header.durability is Durability.POWER:
        expected[TOUCHED_NAME] = cut / TOUCHED_NAME, bitmap_bytes(header.geometry.region_count)
    expected[STAGING_NAME] = path / STAGING_NAME, file_bytes(header.block_bytes, header.staging_slots)
    expected[CONTROL_NAME] = path / CONTROL_NAME, PAGE_OF_NUMBERS_BYTES
    expected[NUMBERS_NAME] = cut / NUMBERS_NAME, PAGE_OF_NUMBERS_BYTES
    return expected
