"""What a kill or a power loss would leave at every change of anything.

Every system call that changes a file and every store into a mapping is one *change*. `recording` copies image
and store before each of them: what a killed process had stored is in its files, so the copy is what the next
process would find. With `power` the copy is what the disk would hold: `Disk`.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine_rig import QuickFiles, Rig

from cow.disk.bitmaps import Bitmap
from cow.disk.files import Files
from cow.disk.image import Image
from cow.disk.index import Index
from cow.disk.mapped_file import MappedFile
from cow.disk.numbers import Page
from cow.disk.staging import Staging

PAGE_BYTES = 4096


@dataclass
class Progress:
    """How far the work has come: steps done, steps whose writes were synced, whether the store was open."""

    written: int = 0
    synced: int = 0
    opened: bool = False


@dataclass(frozen=True)
class Moment:
    """The copy made before one change."""

    number: int
    directory: Path
    progress: Progress


class Recorder:
    """Makes a copy before each change while it is armed."""

    def __init__(self, rig: Rig, target: Path, disk: Disk | None) -> None:
        self._source, self._target, self._disk = rig.image_path.parent, target, disk
        self.progress = Progress()
        self.moments: list[Moment] = []
        self._armed = False

    def arm(self) -> None:
        self._armed = True

    def change(self) -> None:
        if not self._armed:
            return
        self._armed = False
        number = len(self.moments) + 1
        directory = self._target / f"moment{number}"
        if self._disk:
            self._disk.copy_to(directory)
            if number % 7 == 0:
                self._disk.look()
        else:
            _copy(self._source, directory)
        progress = Progress(self.progress.written, self.progress.synced, self.progress.opened)
        self.moments.append(Moment(number, directory, progress))
        self._armed = True


def _copy(source: Path, target: Path) -> None:
    target.mkdir()
    for entry in os.scandir(source):
        if entry.is_dir():
            _copy(Path(entry.path), target / entry.name)
        else:
            (target / entry.name).write_bytes(Path(entry.path).read_bytes())
            info = entry.stat()
            os.utime(target / entry.name, ns=(info.st_atime_ns, info.st_mtime_ns))


@contextmanager
def recording(rig: Rig, target: Path, *, power: bool = False) -> Iterator[Recorder]:
    """Within this, every change of this process is one of the recorder's moments, once it is armed."""
    patches = _Patches()
    disk = Disk(rig, random.Random(1), patches) if power else None
    recorder = Recorder(rig, target, disk)
    try:
        _watch_all(patches, recorder.change)
        yield recorder
        recorder.change()
    finally:
        patches.undo()


@contextmanager
def watching(look: Callable[[], None], *, also_reads: bool = False) -> Iterator[None]:
    """Within this, `look` is called before every change, with `also_reads` before every read of what is shared.

    In the thread that does it; what `look` itself does is not watched.
    """
    patches, looking = _Patches(), threading.local()

    def change() -> None:
        if not getattr(looking, "is_looking", False):
            looking.is_looking = True
            look()
            looking.is_looking = False

    try:
        _watch_all(patches, change)
        if also_reads:
            _watch_reads(patches, change)
        yield
    finally:
        patches.undo()


class _Patches:
    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, make: Callable[[Any], Any]) -> None:
        real = getattr(owner, name)
        self._undo.append((owner, name, real))
        setattr(owner, name, make(real))

    def undo(self) -> None:
        while self._undo:
            owner, name, real = self._undo.pop()
            setattr(owner, name, real)


def _before(change: Callable[[], None]) -> Callable[[Any], Any]:
    def before(real: Any) -> Any:
        def watched(*arguments: Any, **more: Any) -> Any:
            change()
            return real(*arguments, **more)

        return watched

    return before


def _watch_all(patches: _Patches, change: Callable[[], None]) -> None:
    before = _before(change)

    def creating(real: Any) -> Any:
        def watched(path: Any, flags: int, *rest: Any, **more: Any) -> Any:
            if flags & (os.O_CREAT | os.O_TRUNC):
                change()
            return real(path, flags, *rest, **more)

        return watched

    for name in ("pwrite", "rename", "unlink", "mkdir", "rmdir", "ftruncate", "posix_fallocate"):
        patches.set(os, name, before)
    patches.set(os, "open", creating)
    for name in ("sync", "sync_data", "sync_directory", "punch", "zero"):
        patches.set(QuickFiles, name, before)
    for owner, name in (
        (Page, "__setitem__"),
        (Page, "put"),
        (MappedFile, "clear"),
        (Staging, "fill"),
        (Staging, "void"),
    ):
        patches.set(owner, name, before)
    _watch_ranges(patches, change)


def _watch_ranges(patches: _Patches, change: Callable[[], None]) -> None:
    """Ranges of bits and entries block by block, copies into the ring by halves: a kill may come in between."""

    def bits(real: Any) -> Any:
        def watched(bitmap: Bitmap, first: int, end: int) -> None:
            for block_no in range(first, end):
                change()
                real(bitmap, block_no, block_no + 1)

        return watched

    def staged(real: Any) -> Any:
        def watched(index: Index, first: int, end: int, seq: int) -> None:
            for block_no in range(first, end):
                change()
                real(index, block_no, block_no + 1, seq + block_no - first)

        return watched

    def stored(real: Any) -> Any:
        def watched(index: Index, first: int, end: int, entry: int) -> None:
            for block_no in range(first, end):
                change()
                real(index, block_no, block_no + 1, entry)

        return watched

    def replaced(real: Any) -> Any:
        def watched(index: Index, first: int, entries: list[int], entry: int) -> None:
            for at, expected in enumerate(entries):
                change()
                real(index, first + at, [expected], entry)

        return watched

    def halves(real: Any) -> Any:
        def watched(files: Files, fd: int, views: Sequence[memoryview], offset: int) -> None:
            change()
            real(files, fd, [views[0][: len(views[0]) // 2]], offset)
            change()
            real(files, fd, views, offset)

        return watched

    patches.set(Bitmap, "set_range", bits)
    patches.set(Index, "set_staged", staged)
    patches.set(Index, "set_stored", stored)
    patches.set(Index, "replace", replaced)
    patches.set(Files, "read_into", halves)


def _watch_reads(patches: _Patches, change: Callable[[], None]) -> None:
    """Looks at the maps and files that all processes share. Runs of bits are found one after the other."""

    def stepwise(real: Any) -> Any:
        def watched(bitmap: Bitmap, first: int, end: int) -> Iterator[Any]:
            change()
            for run in real(bitmap, first, end):
                yield run
                change()

        return watched

    for owner, names in (
        (Bitmap, ("get", "any_set", "all_set", "clear_runs", "count_set")),
        (Index, ("get", "get_range")),
        (Staging, ("tags", "checksums")),
        (Page, ("__getitem__",)),
        (Files, ("pread",)),
        (Image, ("try_read_into",)),
    ):
        for name in names:
            patches.set(owner, name, _before(change))
    patches.set(Bitmap, "runs", stepwise)


class Disk:
    """What would be on the disk: contents as of the last fsync of each file, names as of that of each directory.

    When power is lost, whatever was changed since is there or not, page by page, some pages as they were at
    a moment between.
    """

    def __init__(self, rig: Rig, rng: random.Random, patches: _Patches) -> None:
        self._root, self._rng = rig.image_path.parent, rng
        self._contents: dict[int, bytes] = {}
        self._between: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int]] = {}
        # What a name that was removed or replaced since its directory was synced stood for.
        self._gone: dict[Path, bytes] = {}
        self._keep(rig.image_fd)
        self._keep_names(self._root)
        self._watch(patches)

    def _watch(self, patches: _Patches) -> None:
        def synced(real: Any) -> Any:
            def watched(files: Files, fd: int) -> None:
                real(files, fd)
                if not os.path.isdir(f"/proc/self/fd/{fd}"):
                    self._keep(fd)

            return watched

        def directory_synced(real: Any) -> Any:
            def watched(files: Files, path: Path) -> None:
                real(files, path)
                self._keep_names(path)

            return watched

        def unlinked(real: Any) -> Any:
            def watched(path: Any, *, dir_fd: int | None = None) -> None:
                base = Path(os.readlink(f"/proc/self/fd/{dir_fd}")) if dir_fd is not None else Path()
                self._forget(base / path)
                real(path, dir_fd=dir_fd)

            return watched

        def renamed(real: Any) -> Any:
            def watched(source: Any, target: Any) -> None:
                self._forget(Path(target))
                real(source, target)

            return watched

        patches.set(QuickFiles, "sync", synced)
        patches.set(QuickFiles, "sync_data", synced)
        patches.set(QuickFiles, "sync_directory", directory_synced)
        patches.set(os, "unlink", unlinked)
        patches.set(os, "rename", renamed)

    def _keep(self, fd: int) -> None:
        inode = os.fstat(fd).st_ino
        self._contents[inode] = Path(f"/proc/self/fd/{fd}").read_bytes()
        self._between.pop(inode, None)

    def _forget(self, path: Path) -> None:
        """The name is about to go; its inode number may soon stand for another file."""
        if path.is_file():
            inode = path.stat().st_ino
            self._between.pop(inode, None)
            content = self._contents.pop(inode, None)
            if content is not None:
                self._gone.setdefault(path, content)

    def _keep_names(self, path: Path) -> None:
        self._gone = {name: content for name, content in self._gone.items() if name.parent != path}
        self._names[path] = {entry.name: entry.inode() for entry in os.scandir(path)}

    def look(self) -> None:
        """Remember the files as they are now: some of their pages may reach the disk like that."""
        for path in self._root.rglob("*"):
            if path.is_file():
                self._between[path.stat().st_ino] = path.read_bytes()

    def copy_to(self, target: Path) -> None:
        """A disk after a power loss at this moment."""
        self._copy(self._root, target)

    def _copy(self, source: Path, target: Path) -> None:
        target.mkdir()
        now = {entry.name: entry.inode() for entry in os.scandir(source)} if source.is_dir() else {}
        names = self._rng.choice([now, self._names.get(source, {})])
        for name, inode in names.items():
            path = source / name
            if path.is_dir() or (path in self._names and name not in now):
                self._copy(path, target / name)
            elif now.get(name) == inode and path not in self._gone:
                (target / name).write_bytes(self._mixed(path, inode))
                info = path.stat()
                os.utime(target / name, ns=(info.st_atime_ns, info.st_mtime_ns))
            elif path in self._gone:
                (target / name).write_bytes(self._gone[path])

    def _mixed(self, path: Path, inode: int) -> bytes:
        now, durable = path.read_bytes(), self._contents.get(inode)
        if durable is None:
            durable = b"" if self._rng.random() < 0.3 else bytes(len(now))
        if len(durable) < len(now) and self._rng.random() < 0.5:
            now = now[: len(durable)]
        versions = self._rng.choice([[now], [durable], [now, durable, self._between.get(inode, durable)]])
        length = max(len(now), len(durable))
        pages = []
        for at in range(0, length, PAGE_BYTES):
            page = self._rng.choice(versions)[at : at + PAGE_BYTES]
            pages.append(page.ljust(min(PAGE_BYTES, length - at), b"\0"))
        return b"".join(pages)
