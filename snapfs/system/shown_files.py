"""The files that a view shows, below its mount point.

    LIVE/disk.img, SNAP/disk.img            the present; the newest snapshot
    SNAP/.snapshots/NAME/disk.img           each snapshot that has a name
    SNAP/.chunks/NAME/000000M ...           the same as files of some MiB; NAME or newest

Rules:
- Another user may serve the view, and says what it is called: neither a symbolic link of his nor a name leads to
  anything outside of it.
- Its server may be stopped: it is asked from a child first.
- It follows a cut by some milliseconds, and until then SNAP/disk.img is the one before. Each snapshot has an inode of
  its own in the view, which tells.
"""

from __future__ import annotations

import errno
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from snapfs.errors import SnapfsError
from snapfs.system.asking import ask
from snapfs.system.stores import check_view

SNAPSHOTS_NAME: Final = ".snapshots"
CHUNKS_NAME: Final = ".chunks"
_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC
# The server itself gives up after this time.
_SHOW_S: Final = 5.0
_LOOK_S: Final = 0.01


@dataclass(frozen=True)
class ShownFile:
    """What is called so, one name below the other, in the view on `view`, and has that `inode` (0: any)."""

    view: Path
    names: tuple[str, ...]
    inode: int = 0

    @property
    def path(self) -> Path:
        return self.view.joinpath(*self.names)

    def check(self, store: Path) -> None:
        """SnapfsError unless `view` is one of the owner of `store`, whose server answers."""
        check_view(self.view, store)
        self.check_answers()

    def check_answers(self) -> None:
        """SnapfsError when the server of the view does not even answer what the file is."""
        if ask(partial(_look_at, self)).is_silence:
            raise SnapfsError(
                f"{self.path} does not answer; the processes of that snapfs are stopped or hang: let them go on "
                "(kill -CONT).",
                path=self.path,
            )

    def open(self, flags: int = 0) -> int:
        """It is opened for reading. OSError: it cannot be, or is none of the view's own; ESTALE: it is another, and
        that does not change."""
        until = time.monotonic() + _SHOW_S
        while True:
            fd = self._open(flags)
            if self.inode in (0, os.fstat(fd).st_ino):
                return fd
            os.close(fd)
            if time.monotonic() > until:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), os.fspath(self.path))
            time.sleep(_LOOK_S)

    def _open(self, flags: int) -> int:
        fd = os.open(self.view, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        *folders, last = self.names
        try:
            for name in folders:
                above, fd = fd, os.open(_plain(name), os.O_PATH | os.O_DIRECTORY | _FLAGS, dir_fd=fd)
                os.close(above)
            return os.open(_plain(last), os.O_RDONLY | _FLAGS | flags, dir_fd=fd)
        finally:
            os.close(fd)


def _look_at(file: ShownFile) -> bytes:
    os.close(file._open(os.O_NONBLOCK))
    return b""


def _plain(name: str) -> str:
    if name in ("", ".", "..") or "/" in name:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), name)
    return name
