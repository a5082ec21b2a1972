"""Every change of anything: every system call that changes a file, and every store into a mapping.

Whoever wants to be there before each of them patches what does them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from engine_rig import QuickFiles

from cow.disk.bitmaps import Bitmap
from cow.disk.files import Files
from cow.disk.image import Image
from cow.disk.index import Index
from cow.disk.mapped_file import MappedFile
from cow.disk.numbers import Page
from cow.disk.staging import Staging


@contextmanager
def watching(look: Callable[[], None], *, also_reads: bool = False) -> Iterator[None]:
    """Within this, `look` is called before every change, with `also_reads` before every read of what is shared.

    In the thread that does it; what `look` itself does is not watched.
    """
    patches, looking = Patches(), threading.local()

    def change() -> None:
        if not getattr(looking, "is_looking", False):
            looking.is_looking = True
            look()
            looking.is_looking = False

    try:
        watch_all(patches, change)
        if also_reads:
            _watch_reads(patches, change)
        yield
    finally:
        patches.undo()


class Patches:
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


def watch_all(patches: Patches, change: Callable[[], None]) -> None:
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


def _watch_ranges(patches: Patches, change: Callable[[], None]) -> None:
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


def _watch_reads(patches: Patches, change: Callable[[], None]) -> None:
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
