"""Stopping the engine at its Nth change of anything, in a process of its own, as a kill or a power loss would.

Every system call that changes a file and every store into a mapping is one *change*. A child process does the
work and leaves without another instruction at the change it is told: no ``finally`` runs, no buffer is written.
"""

from __future__ import annotations

import mmap
import os
import random
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine_rig import QuickFiles, Rig

from cow.bitmaps import Bitmap
from cow.control import Control
from cow.files import Files, MappedFile
from cow.index import Index
from cow.staging import Staging

_STOPPED, _FAILED = 77, 78
PAGE_BYTES = 4096


class Progress:
    """Numbers that the child leaves behind: changes made, writes acknowledged, writes synced, opens that returned."""

    def __init__(self) -> None:
        self._numbers = memoryview(mmap.mmap(-1, 4096)).cast("Q")

    def _get(self, at: int) -> int:
        return self._numbers[at]

    def _set(self, at: int, value: int) -> None:
        self._numbers[at] = value

    changes = property(lambda self: self._get(0), lambda self, value: self._set(0, value))
    written = property(lambda self: self._get(1), lambda self, value: self._set(1, value))
    synced = property(lambda self: self._get(2), lambda self, value: self._set(2, value))
    opened = property(lambda self: self._get(3), lambda self, value: self._set(3, value))


class Stopper:
    """Counts changes from ``arm`` on and leaves at number ``stop_at`` (0: never)."""

    def __init__(self, progress: Progress, stop_at: int, on_stop: Callable[[], None] = lambda: None) -> None:
        self.progress, self._stop_at, self._on_stop = progress, stop_at, on_stop
        self._armed = False
        self.on_change: Callable[[int], None] = lambda number: None

    def arm(self) -> None:
        self._armed = True

    def change(self) -> None:
        if not self._armed:
            return
        self.progress.changes += 1
        self.on_change(self.progress.changes)
        if self.progress.changes == self._stop_at:
            self._armed = False
            self._on_stop()
            os._exit(_STOPPED)

    def install(self) -> None:
        """Watch this process; it is a child that never returns to the tests."""
        for name in ("pwrite", "rename", "unlink", "mkdir", "rmdir", "ftruncate", "posix_fallocate"):
            self._watch(os, name)
        for name in ("sync", "sync_data", "sync_directory"):
            self._watch(QuickFiles, name)
        self._watch(Control, "__setitem__")
        self._watch(MappedFile, "clear")
        self._watch(Staging, "fill")
        self._watch(Staging, "void")
        self._watch_blocks()
        self._watch_copies()
        real_open = os.open

        def watched_open(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if flags & (os.O_CREAT | os.O_TRUNC):
                self.change()
            return real_open(path, flags, *rest, **more)

        os.open = watched_open

    def _watch(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def watched(*arguments: Any, **more: Any) -> Any:
            self.change()
            return real(*arguments, **more)

        setattr(owner, name, watched)

    def _watch_blocks(self) -> None:
        """Ranges of bits and entries, block by block: a kill may come between two of them."""
        set_range, set_staged = Bitmap.set_range, Index.set_staged
        set_stored, replace_staged = Index.set_stored, Index.replace_staged

        def bits(bitmap: Bitmap, first: int, end: int) -> None:
            for block_no in range(first, end):
                self.change()
                set_range(bitmap, block_no, block_no + 1)

        def staged(index: Index, first: int, end: int, seq: int) -> None:
            for block_no in range(first, end):
                self.change()
                set_staged(index, block_no, block_no + 1, seq + block_no - first)

        def stored(index: Index, first: int, end: int, entry: int) -> None:
            for block_no in range(first, end):
                self.change()
                set_stored(index, block_no, block_no + 1, entry)

        def replaced(index: Index, first: int, seqs: list[int], entry: int) -> None:
            for at, seq in enumerate(seqs):
                self.change()
                replace_staged(index, first + at, [seq], entry)

        patches = {"set_staged": staged, "set_stored": stored, "replace_staged": replaced}
        for name, patch in patches.items():
            setattr(Index, name, patch)
        Bitmap.set_range = bits  # type: ignore[method-assign]

    def _watch_copies(self) -> None:
        """Copies into the ring end half-way, too."""
        read_into = Files.read_into

        def halves(files: Files, fd: int, views: Sequence[memoryview], offset: int) -> None:
            half = len(views[0]) // 2
            self.change()
            read_into(files, fd, [views[0][:half]], offset)
            self.change()
            read_into(files, fd, views, offset)

        Files.read_into = halves  # type: ignore[method-assign]


Work = Callable[[Rig, Stopper], None]


def run_child(rig: Rig, work: Work, stop_at: int, *, power_seed: int | None = None) -> tuple[bool, Progress]:
    """Do ``work`` in a child that stops at change ``stop_at``; whether it stopped, and how far it came."""
    progress = Progress()
    pid = os.fork()
    if not pid:
        try:
            _be_child(rig, work, progress, stop_at, power_seed)
        except BaseException:
            traceback.print_exc()
            os._exit(_FAILED)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, _STOPPED), f"the child failed before change {stop_at}"
    return code == _STOPPED, progress


def _be_child(rig: Rig, work: Work, progress: Progress, stop_at: int, power_seed: int | None) -> None:
    stopper = Stopper(progress, stop_at)
    if power_seed is not None:
        disk = Disk(rig, random.Random(power_seed))
        stopper = Stopper(progress, stop_at, disk.lose_power)
        disk.install(stopper, stop_at)
    stopper.install()
    work(rig, stopper)


class Disk:
    """What would be on the disk: contents as of the last fsync of each file, names as of that of each directory.

    When power is lost, whatever was changed since is there or not, page by page, some pages as they were at
    a moment between.
    """

    def __init__(self, rig: Rig, rng: random.Random) -> None:
        self._root, self._rng = rig.image_path.parent, rng
        self._contents: dict[int, bytes] = {}
        self._between: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int]] = {}
        # What a name that was removed or replaced since its directory was synced stood for.
        self._gone: dict[Path, bytes] = {}
        self._keep(rig.image_fd)
        self._keep_names(self._root)

    def install(self, stopper: Stopper, stop_at: int) -> None:
        sync, directory = QuickFiles.sync, QuickFiles.sync_directory
        moment = self._rng.randrange(1, max(2, stop_at))
        stopper.on_change = lambda number: self._look() if number == moment else None

        def synced(files: QuickFiles, fd: int) -> None:
            sync(files, fd)
            if not os.path.isdir(f"/proc/self/fd/{fd}"):
                self._keep(fd)

        def directory_synced(files: QuickFiles, path: Path) -> None:
            directory(files, path)
            self._keep_names(path)

        unlink, rename = os.unlink, os.rename

        def unlinked(path: Any, *rest: Any, dir_fd: int | None = None) -> None:
            base = Path(os.readlink(f"/proc/self/fd/{dir_fd}")) if dir_fd is not None else Path()
            self._forget(base / path)
            unlink(path, *rest, dir_fd=dir_fd)

        def renamed(source: Any, target: Any) -> None:
            self._forget(Path(target))
            rename(source, target)

        os.unlink, os.rename = unlinked, renamed
        QuickFiles.sync = QuickFiles.sync_data = synced  # type: ignore[method-assign]
        QuickFiles.sync_directory = directory_synced  # type: ignore[method-assign]

    def _keep(self, fd: int) -> None:
        info = os.fstat(fd)
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            self._contents[info.st_ino] = file.read()
        self._between.pop(info.st_ino, None)

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

    def _look(self) -> None:
        for path in self._root.rglob("*"):
            if path.is_file():
                self._between[path.stat().st_ino] = path.read_bytes()

    def lose_power(self) -> None:
        self._lose(self._root)

    def _lose(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        now = {entry.name: entry.inode() for entry in os.scandir(directory)}
        durable = self._names.get(directory, {})
        names = self._rng.choice([now, durable])
        for name in now.keys() - names.keys():
            self._remove(directory / name)
        for name, inode in names.items():
            path = directory / name
            if path.is_dir() or (path in self._names and name not in now):
                self._lose(path)
            elif now.get(name) == inode and path not in self._gone:
                self._mix(path, inode)
            elif path in self._gone:
                path.write_bytes(self._gone[path])

    def _remove(self, path: Path) -> None:
        if path.is_dir():
            for child in path.iterdir():
                self._remove(child)
            path.rmdir()
        else:
            path.unlink()

    def _mix(self, path: Path, inode: int) -> None:
        now, durable = path.read_bytes(), self._contents.get(inode)
        if durable is None:
            durable = b"" if self._rng.random() < 0.3 else bytes(len(now))
        if len(durable) < len(now) and self._rng.random() < 0.5:
            now = now[: len(durable)]
        between = self._between.get(inode, durable)
        kind = self._rng.choice(["mixed", "durable", "now"])
        info, pages = path.stat(), []
        for at in range(0, max(len(now), len(durable)), PAGE_BYTES):
            versions = {"mixed": [now, durable, between], "durable": [durable], "now": [now]}[kind]
            page = self._rng.choice(versions)[at : at + PAGE_BYTES]
            pages.append(page.ljust(min(PAGE_BYTES, max(len(now), len(durable)) - at), b"\0"))
        with path.open("r+b") as file:
            file.write(b"".join(pages))
            file.truncate()
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
