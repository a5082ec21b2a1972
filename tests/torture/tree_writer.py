"""One writer of files: `tree_writer.py DIRECTORY PROGRESS SEED WRITERS WRITER PAUSE_S`.

It does its actions in order until it is killed, each synced before the next. Between them it does what nobody looks
at, and what is synced when the kernel likes: files and directories come, grow, shrink, move, get holes and links, and
go. At its limit it holds nothing open and waits.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cuts_content import Progress
from tree_content import KIB, Author, directory_of, file_of

_LOOK_S = 0.002
_NAMES = 30
_HOLE = 3  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_libc = ctypes.CDLL(None, use_errno=True)


class Writer:
    def __init__(self, root: Path, author: Author) -> None:
        self._author = author
        self._own = directory_of(root, author.writer)
        self._noise = self._own / "noise"
        self._noise.mkdir(parents=True, exist_ok=True)
        self._draw = random.Random(f"{author.seed} {author.writer} noise")

    # --- what is looked at -----------------------------------------------------------------------------------

    def act(self, number: int) -> None:
        action = self._author.action(number)
        path = file_of(self._own, action.slot)
        if action.what == "remove":
            path.unlink(missing_ok=True)
        else:
            content = self._author.content(number)
            written = path if action.what == "rewrite" else self._own / "new"
            self._write(written, content)
            if written != path:
                written.rename(path)
        self._sync(self._own, os.O_DIRECTORY)

    def _write(self, path: Path, content: bytes) -> None:
        """In place, where there is one."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.pwrite(fd, content, 0) != len(content):
                raise OSError(f"{path} was not written whole")
            os.ftruncate(fd, len(content))
            os.fsync(fd)
        finally:
            os.close(fd)

    def _sync(self, path: Path, flags: int) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    # --- what is not -----------------------------------------------------------------------------------------

    def stir(self) -> None:
        """One thing, which may fail for what is there, or is not."""
        steps: tuple[Callable[[Path], None], ...] = (self._grow, self._grow, self._shrink, self._punch, self._move)
        steps += (self._link, self._symlink, self._tree, self._remove, self._reserve)
        with suppress(OSError):
            self._draw.choice(steps)(self._name())

    def _name(self) -> Path:
        return self._noise / str(self._draw.randrange(_NAMES))

    def _grow(self, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, self._draw.randbytes(self._draw.randrange(1, 96 * KIB)), self._draw.randrange(96 * KIB))
        finally:
            os.close(fd)

    def _shrink(self, path: Path) -> None:
        os.truncate(path, self._draw.randrange(96 * KIB))

    def _punch(self, path: Path) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            offset, length = (ctypes.c_long(self._draw.randrange(1, 64 * KIB)) for _ in range(2))
            _libc.fallocate(fd, _HOLE, offset, length)
        finally:
            os.close(fd)

    def _reserve(self, path: Path) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.posix_fallocate(fd, 0, self._draw.randrange(1, 64 * KIB))
        finally:
            os.close(fd)

    def _move(self, path: Path) -> None:
        path.rename(self._name())

    def _link(self, path: Path) -> None:
        os.link(path, self._name())

    def _symlink(self, path: Path) -> None:
        path.symlink_to("x" * self._draw.randrange(1, 200))

    def _tree(self, path: Path) -> None:
        path.mkdir()
        for number in range(self._draw.randrange(20)):
            (path / str(number)).write_bytes(bytes(number * 100))

    def _remove(self, path: Path) -> None:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def write_on(root: Path, progress: Progress, author: Author, pause_s: float) -> None:
    writer, number = author.writer, 0
    one = Writer(root, author)
    while True:
        if number >= progress.limit[writer]:
            progress.rests[writer] = 1
            while number >= progress.limit[writer]:
                time.sleep(_LOOK_S)
            progress.rests[writer] = 0
        number += 1
        progress.tried[writer] = number
        one.act(number)
        progress.done[writer] = number
        for _ in range(3):
            one.stir()
        time.sleep(pause_s)


def main(words: list[str]) -> None:
    _libc.prctl(1, signal.SIGKILL, 0, 0, 0)
    root, progress, seed, writers, writer, pause_s = words
    author = Author(int(seed), int(writer))
    write_on(Path(root), Progress(Path(progress), int(writers)), author, float(pause_s))


if __name__ == "__main__":
    main(sys.argv[1:])
