"""The store as a directory: its names, its lock, its open files.

    header          what the store is for (the commit point)
    control         the numbers the processes share
    staging         the ring
    lock            held with flock while the store is in use; the holder's process number in it
    segments/       the records of all cuts: 00000001-00000001 and so on, by number and generation
    cut-00000001/   settled, changed, released, free, index, numbers; free.seal once the map of free blocks is
                    known; intact, which the end of the snapshot renames; and seal after a clean end

Only these names are ever removed: whatever else a user put there stays, and the directory with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from cow.disk.bitmaps import Bitmap
from cow.disk.files import Files, MappedFile, check_directory, open_plain
from cow.disk.header import HEADER_NAME, Header, read_header
from cow.disk.index import Index
from cow.disk.layout import Counter, CutCounter, State
from cow.disk.numbers import Control, CutNumbers, Page, SharedPages
from cow.disk.releases import Releases
from cow.disk.segments import Segments
from cow.disk.staging import Staging
from cow.errors import SnapshotEnded, StoreBusy, StoreDamaged, StoreError
from cow.geometry import Geometry

CONTROL_NAME, STAGING_NAME, LOCK_NAME, SEAL_NAME = "control", "staging", "lock", "seal"
SOCKET_NAME, LOG_NAME = "socket", "log"
UNFINISHED_NAME = HEADER_NAME + ".new"
_PLAIN_NAMES = frozenset({HEADER_NAME, UNFINISHED_NAME, CONTROL_NAME, STAGING_NAME, LOCK_NAME, SOCKET_NAME, LOG_NAME})
_CUT_PREFIX = "cut-"
# What FUSE and NFS rename a file to that is removed while it is open, until it is closed.
_STAND_INS = (".fuse_hidden", ".nfs")
BITMAP_NAMES = ("settled", "changed", "released", "free")
INDEX_NAME, NUMBERS_NAME, SEGMENTS_NAME = "index", "numbers", "segments"
FREE_SEAL_NAME = "free.seal"
# An empty file under one of these names says what the disk knows of the snapshot's end; no name: overflowed.
INTACT_NAME, OVERFLOWED_NAME, UNREADABLE_NAME = "intact", "overflowed", "unreadable"

_NEVER: Final = memoryview(bytes(8)).cast("Q")


def cut_path(store: Path, generation: int) -> Path:
    return store / f"{_CUT_PREFIX}{generation:08d}"


def segments_of(store: Path, generation: int) -> Segments:
    """The segments of the store with records of this generation."""
    return Segments(store / SEGMENTS_NAME, generation)


@dataclass(slots=True)
class Cut:
    """The open files of one cut in this process, for as long as somebody holds it: whoever opened it does, and
    whoever works on it beside others (``held``). The last one to let go closes them; of a cut that is over in the
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
    is_over: bool = False
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
        """The same until ``let_go``."""
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
            _remove_tree(self.path)

    @property
    def is_open(self) -> bool:
        return self._holders > 0

    @property
    def segments(self) -> Segments:
        return segments_of(self.path.parent, self.generation)

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
        return *(bitmap.file for bitmap in self.bitmaps), self.index.file, self.numbers.file

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


def open_cut(
    store: Path,
    generation: int,
    geometry: Geometry,
    files: Files,
    *,
    writable: bool,
    create: bool = False,
    pages: SharedPages | None = None,
    fill: bool = True,
) -> Cut:
    """The files of a cut; with ``create`` new ones, in time and space that do not depend on the image.

    ``pages``, ``fill``: see ``Page``.
    """
    path = cut_path(store, generation)
    if create:
        path.mkdir(0o700)
        (path / INTACT_NAME).touch(0o600)
    check_directory(path)
    count = geometry.block_count
    settled, changed, released, free = (
        Bitmap(path / name, count, files, writable=writable, create=create) for name in BITMAP_NAMES
    )
    index = Index(path / INDEX_NAME, count, files, writable=writable, create=create)
    page = None if pages is None else pages.of_cut(generation)
    numbers = CutNumbers(path / NUMBERS_NAME, files, writable=writable, create=create, shared=page, fill=fill)
    if create:
        numbers[CutCounter.STATE] = State.ACTIVE
        numbers.write_back()
        # The header's commit makes the cut's own name durable, not the names in it.
        files.sync_directory(path)
    return Cut(generation, path, settled, changed, released, free, index, numbers)


@dataclass(slots=True)
class Store:
    """An open store with its present cut, which it holds. ``lock_fd`` is -1 for a reader."""

    path: Path
    header: Header
    control: Control
    staging: Staging
    cut: Cut
    files: Files
    lock_fd: int = -1
    pages: SharedPages | None = None
    _last_generation: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def end_cut(self, generation: int) -> None:
        """Nothing of the cut is to be read any more: before the first write that takes something from it."""
        if self.pages is not None:
            self.pages.end(generation)

    def end_of(self, generation: int) -> memoryview:
        """See ``SharedPages.end_of``. A reader from outside the instance is never told."""
        return _NEVER if self.pages is None else self.pages.end_of(generation)

    @property
    def releases(self) -> Releases:
        """What the compactor has to give back; of an instance's own, else nobody would ever take it."""
        return Releases((self.pages or SharedPages()).releases)

    def page_of(self, number: Counter | CutCounter) -> Page:
        """Where the number is, for the present cut."""
        return self.control if isinstance(number, Counter) else self.cut.numbers

    def hold_cut(self) -> Cut:
        """The present cut, to be let go."""
        with self._lock:
            return self.cut.hold()

    def open_cut(self, generation: int, *, writable: bool) -> Cut:
        """Another look at a cut of this instance; whoever opens it lets go of it."""
        return open_cut(
            self.path,
            generation,
            self.geometry,
            self.files,
            writable=writable,
            pages=self.pages,
            fill=False,
        )

    def next_generation(self) -> int:
        """A number that no cut of this store has had, and no debris of one."""
        with self._lock:
            generation = next_generation(self.path, max(self._last_generation, self.cut.generation))
            while self.pages is not None and self.pages.share_a_page(generation, self.cut.generation):
                generation = next_generation(self.path, generation)
            self._last_generation = generation
            return generation

    def enter(self, cut: Cut, header: Header) -> Cut:
        """``cut`` is the present one from here on. The one before, which is over, is the caller's to let go."""
        with self._lock:
            before, self.cut, self.header = self.cut, cut, header
        before.is_over = True
        return before

    def present(self, *, writable: bool) -> Store:
        """The same store in a process that may have been started long after this was opened."""
        while True:
            header = read_header(self.path)
            if header is None:
                raise StoreDamaged(str(self.path), "has lost its header")
            if header.cut.generation == self.cut.generation and self.cut.is_open:
                return self
            try:
                cut = self.open_cut(header.cut.generation, writable=writable)
            except FileNotFoundError:
                # Gone between the two looks, if there is a later one.
                later = read_header(self.path)
                if later is None or later.cut.generation == header.cut.generation:
                    raise
            else:
                return replace(self, header=header, cut=cut, _lock=threading.Lock())

    @property
    def geometry(self) -> Geometry:
        return self.header.geometry

    @property
    def can_hold_a_cut(self) -> bool:
        """Whether what all cuts share is whole: the numbers, and the ring."""
        return self.control.file.is_whole and self.staging.file.is_whole

    @property
    def is_whole(self) -> bool:
        """Whether all that is mapped is: see ``MappedFile.is_whole``."""
        return self.can_hold_a_cut and self.cut.is_whole

    def close(self) -> None:
        if self.cut.is_open:
            self.cut.let_go()
        self.staging.close()
        self.control.close()
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1


def open_parts(path: Path, header: Header, files: Files, *, writable: bool, lock_fd: int = -1) -> Store:
    """Open all files that ``header`` promises; OSError or ValueError when one is missing or too short."""
    pages = SharedPages() if writable else None
    shared = None if pages is None else pages.control
    check_directory(path / SEGMENTS_NAME)
    control = Control(path / CONTROL_NAME, files, writable=writable, shared=shared)
    staging = Staging(path / STAGING_NAME, header.block_bytes, header.staging_slots, files, writable=writable)
    cut = open_cut(path, header.cut.generation, header.geometry, files, writable=writable, pages=pages)
    return Store(path, header, control, staging, cut, files, lock_fd, pages)


def open_reader(path: Path, files: Files) -> Store:
    """The store for looking only: another process may be writing it."""
    header = read_header(path)
    if header is None:
        raise StoreError(str(path), "holds no snapshot")
    return open_parts(path, header, files, writable=False)


def lock_store(path: Path) -> int:
    """Take the store for this process and its children; StoreBusy when another has it."""
    fd = open_plain(path / LOCK_NAME, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        raise StoreBusy(str(path), int(text) if text.isdecimal() else None) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def holds_preserved(path: Path) -> bool:
    """Whether a cut in the store ever preserved anything: then a missing header is damage, not a new store."""
    if (path / UNFINISHED_NAME).exists():
        return False
    return any(_holds_data(path / name / INDEX_NAME) for name in os.listdir(path) if _is_cut(name))


def _holds_data(path: Path) -> bool:
    """Whether the file has a byte that is not zero; holes are not read."""
    try:
        with open(open_plain(path, os.O_RDONLY), "rb") as file:
            offset = 0
            while piece := os.pread(file.fileno(), 1 << 20, offset := os.lseek(file.fileno(), offset, os.SEEK_DATA)):
                if any(piece):
                    return True
                offset += len(piece)
    except OSError:
        pass  # no such file, or nothing but a hole from here on
    return False


def foreign_names(path: Path) -> list[str]:
    """Names in the directory that no store has: a sign that it is the user's, not ours."""
    known = _PLAIN_NAMES | {SEGMENTS_NAME}
    names = (name for name in os.listdir(path) if name not in known and not _is_cut(name))
    return sorted(name for name in names if not name.startswith(_STAND_INS))


def _is_cut(name: str) -> bool:
    return name.startswith(_CUT_PREFIX) and name[len(_CUT_PREFIX) :].isdecimal()


def remove_cuts(path: Path, keep: int | None = None) -> None:
    """Remove the directories of all cuts but generation ``keep``, as far as the disk lets them go.

    One that stays is debris: a filesystem may keep a name for a file that is still open, or refuse altogether.
    """
    kept = "" if keep is None else cut_path(path, keep).name
    for name in os.listdir(path):
        if _is_cut(name) and name != kept:
            _remove_tree(path / name)


def remove_segments(path: Path, keep: int = 0) -> None:
    """Remove the segments of all cuts but generation ``keep``, as far as the disk lets them go.

    OSError when one of a later cut stays: its records would pass for those of a cut to come.
    """
    directory = path / SEGMENTS_NAME
    if directory.is_symlink() or not directory.is_dir():
        directory.unlink(missing_ok=True)
        return
    Segments(directory, keep).remove_others()


def remove_cut(path: Path, generation: int) -> None:
    """Remove what there is of one cut that nobody holds."""
    _remove_tree(cut_path(path, generation))


def next_generation(path: Path, generation: int) -> int:
    """The first generation after this one that has no directory: debris may be in the way."""
    generation += 1
    while cut_path(path, generation).exists():
        generation += 1
    return generation


def _remove_tree(path: Path) -> None:
    """Whatever is in the place of a cut's directory; a link goes, what it leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)  # by descriptors, which follows no link either
    else:
        path.unlink(missing_ok=True)


def remove_store(path: Path) -> None:
    """Remove what is ours, header first: a store half removed is one that was never finished."""
    if not path.is_dir():
        return  # somebody did it before
    with contextlib.suppress(FileNotFoundError):
        # A header that goes missing in any other way leaves no such name behind.
        os.rename(path / HEADER_NAME, path / UNFINISHED_NAME)
    remove_cuts(path)
    with contextlib.suppress(OSError):
        remove_segments(path)
        (path / SEGMENTS_NAME).rmdir()
    # Debris without this name beside it would look like a store that lost its header.
    kept = {UNFINISHED_NAME} if any(map(_is_cut, os.listdir(path))) else set()
    for name in sorted(_PLAIN_NAMES - kept):
        with contextlib.suppress(OSError):
            os.unlink(path / name)
    with contextlib.suppress(OSError):
        path.rmdir()
