"""Directories for sockets and trials. Each is named by the process that made it, so that the next one can tell what a
killed process has left, and removes it.

The address of a socket has 108 bytes at most (unix(7)); where the temporary directory's own name is too long for
that, or cannot be written, it is /tmp.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from snapfs.system.processes import process_start_time

_NAME: Final = re.compile(r"\.snapfs-([0-9]+)-([0-9]+)-[^/]+")
_MAX_DIRECTORY_BYTES: Final = 64


@contextmanager
def scratch(directory: Path | None = None) -> Iterator[Path]:
    """A new private directory in `directory`, or where temporary ones are, that goes at the end with all in it.

    OSError: it cannot be made.
    """
    made = make_scratch(directory)
    try:
        yield made
    finally:
        remove_scratch(made)


def make_scratch(directory: Path | None = None) -> Path:
    """The same, for who calls `remove_scratch`."""
    place = os.fspath(directory) if directory else _temporary_directory()
    _clear(place)
    pid = os.getpid()
    return Path(tempfile.mkdtemp(prefix=f".snapfs-{pid}-{process_start_time(pid)}-", dir=place))


def remove_scratch(directory: Path) -> None:
    """Whatever is in it goes too."""
    shutil.rmtree(directory, ignore_errors=True)


def _temporary_directory() -> str:
    directory = tempfile.gettempdir()
    return directory if len(os.fsencode(directory)) <= _MAX_DIRECTORY_BYTES else "/tmp"


def _clear(directory: str) -> None:
    """Remove what processes of this user have left there that are no more."""
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if (found := _NAME.fullmatch(entry.name)) and _is_left(entry, int(found[1]), int(found[2])):
                remove_scratch(Path(entry.path))


def _is_left(entry: os.DirEntry[str], pid: int, started: int) -> bool:
    try:
        is_ours = entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
    except OSError:
        return False
    return is_ours and process_start_time(pid) != started
