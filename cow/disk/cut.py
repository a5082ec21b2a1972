"""A cut of a store in one process: its open files, for as long as anybody there holds it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cow.disk.bitmaps import Bitmap
from cow.disk.directory import (
    BITMAP_NAMES,
    INDEX_NAME,
    INTACT_NAME,
    NUMBERS_NAME,
    OVERFLOWED_NAME,
    SEGMENTS_NAME,
    TOUCHED_NAME,
    UNREADABLE_NAME,
    cut_path,
    remove_tree,
)
from cow.disk.files import Files
from cow.disk.header import Header
from cow.disk.index import Index
from cow.disk.layout import CutCounter, Durability, State
from cow.disk.mapped_file import MappedFile
from cow.disk.numbers import CutNumbers, SharedPages
from cow.disk.plain import check_directory
from cow.disk.segment_files import NO_END, Segments
from cow.errors import SnapshotEnded


@dataclass(slots=True)
class Cut:
    """The open files of one cut in this process, for as long as somebody holds it: whoever opened it does, and
    whoever works on it beside others (`held`). The last one to let go closes them; of a cut that is over in the
    process that owns the store, he removes the directory too.
    """

    generation: int
    path: Path
    settled: Bitmap
    changed: Bitmap
    released: Bitmap
    free: Bitmap
    index: Index
    numbers: CutNumbers
    segments: Segments
    # The regions that were written to, durably so; with durability `power` only.
    touched: Bitmap | None = None
    is_over: bool = False
    # Of who changes what is lost of it, or excused, and the numbers of that, in the live server.
    counting: threading.Lock = field(default_factory=threading.Lock)
    _holders: int = 1
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def held(self) -> Iterator[Cut]:
        """Within this the files stay open, whatever becomes of the cut. SnapshotEnded: they are closed already."""
        self.hold()
        try:
            yield self
        finally:
            self.let_go()

    def hold(self) -> Cut:
        """The same until `let_go`."""
        with self._lock:
            if not self._holders:
                raise SnapshotEnded(f"cut {self.generation} has ended")
            self._holders += 1
        return self

    def let_go(self) -> None:
        """Hold it no longer. May remove what it had on disk: not where somebody waits."""
        with self._lock:
            self._holders -= 1
            if self._holders:
                return
        self._close()
        if self.is_over:
            remove_tree(self.path)

    @property
    def is_open(self) -> bool:
        return self._holders > 0

    @property
    def is_intact(self) -> bool:
        """Whether the disk, too, knows of no end."""
        return (self.path / INTACT_NAME).exists()

    @property
    def is_unreadable(self) -> bool:
        """Whether the snapshot was found to be unreadable."""
        return (self.path / UNREADABLE_NAME).exists()

    def note_overflow(self, files: Files) -> None:
        """Without this a power loss would make an overflowed snapshot look whole. Needs no space on disk."""
        self._rename_intact(OVERFLOWED_NAME, files)

    def note_unreadable(self, files: Files) -> None:
        """The same for one of which nothing can be proven right."""
        self._rename_intact(UNREADABLE_NAME, files)

    def _rename_intact(self, name: str, files: Files) -> None:
        if self.is_intact:
            try:
                (self.path / INTACT_NAME).rename(self.path / name)
            except OSError:
                # A full disk may have no room for another name, but always for one less.
                (self.path / INTACT_NAME).unlink()
            files.sync_directory(self.path)

    @property
    def bitmaps(self) -> tuple[Bitmap, ...]:
        return self.settled, self.changed, self.released, self.free

    @property
    def maps(self) -> tuple[MappedFile, ...]:
        touched = () if self.touched is None else (self.touched.file,)
        return *(bitmap.file for bitmap in self.bitmaps), self.index.file, self.numbers.file, *touched

    @property
    def is_whole(self) -> bool:
        """Whether no map was cut short, and this process missed no page of one."""
        return all(file.is_whole for file in self.maps)

    def trim(self) -> None:
        """Give back resident memory of the mappings; nothing is lost."""
        for file in self.maps:
            file.trim()

    def _close(self) -> None:
        for bitmap in self.bitmaps:
            bitmap.close()
        self.index.close()
        self.numbers.close()
        if self.touched is not None:
            self.touched.close()


def open_cut(
    store: Path,
    generation: int,
    header: Header,
    files: Files,
    *,
    writable: bool,
    create: bool = False,
    pages: SharedPages | None = None,
    fill: bool = True,
) -> Cut:
    """The files of a cut of the store that `header` describes; with `create` new ones, in time and space that do
    not depend on the image.

    `pages`, `fill`: see `Page`.
    """
    path = cut_path(store, generation)
    if create:
        path.mkdir(0o700)
        (path / INTACT_NAME).touch(0o600)
    check_directory(path)
    count = header.geometry.block_count
    settled, changed, released, free = (
        Bitmap(path / name, count, files, writable=writable, create=create) for name in BITMAP_NAMES
    )
    index = Index(path / INDEX_NAME, count, files, writable=writable, create=create)
    touched = None
    if header.durability is Durability.POWER:
        regions = header.geometry.region_count
        touched = Bitmap(path / TOUCHED_NAME, regions, files, writable=writable, create=create)
    page = None if pages is None else pages.of_cut(generation)
    numbers = CutNumbers(path / NUMBERS_NAME, files, writable=writable, create=create, shared=page, fill=fill)
    if create:
        numbers[CutCounter.STATE] = State.ACTIVE
        numbers.write_back()
        # The header's commit makes the cut's own name durable, not the names in it.
        files.sync_directory(path)
    until = header.end_of(generation) or NO_END
    segments = Segments(store / SEGMENTS_NAME, generation, header.record_seed, until)
    return Cut(generation, path, settled, changed, released, free, index, numbers, segments, touched)
