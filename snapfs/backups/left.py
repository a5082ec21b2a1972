"""What an interrupted backup has left in a directory.

NAME.qcow2.partial.digests    first there, last gone: what has it beside is ours
NAME.json.partial, whole      all else of the backup is on the disk, and only names are missing: they are given
NAME.json                     it has its names, and only this is left: removed
neither                       it can be gone on with while its cut is there; else it is removed
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

from snapfs.backups.facts import read_facts
from snapfs.backups.layout import Names, names_left
from snapfs.destination.names import partial_path
from snapfs.destination.unfinished import open_left, sync_directory
from snapfs.destination.write_errors import write_errors
from snapfs.errors import SnapfsError
from snapfs.system import libc
from snapfs.system.file_kinds import read_small


def settle(directory: Path) -> list[Names]:
    """Finish what only wants its names. What is left then is unfinished."""
    unfinished = []
    for names in names_left(directory):
        if not names.facts.exists() and not is_written(names):
            unfinished.append(names)
            continue
        with write_errors(str(names.qcow2), "try again"):
            _give_names(names)
        remove(names)
    return unfinished


def remove(names: Names) -> None:
    """All of an unfinished one; what shows that it is ours last."""
    owners = _owners(names)
    with write_errors(str(names.qcow2), "try again"):
        for path in names.unfinished:
            if path == names.digests:
                sync_directory(names.directory)
            left = open_left(path, owners)
            if left is not None:
                os.unlink(path)
                os.close(left)
        sync_directory(names.directory)


def what_is_left(names: Names) -> dict[str, Any]:
    """What the journal of an unfinished one says that it is of; SnapfsError when it says nothing."""
    with contextlib.suppress(OSError, SnapfsError, ValueError, RecursionError):
        data = json.loads(read_small(names.journal, "", flags=os.O_NOFOLLOW).partition(b"\n")[0])
        if isinstance(data, dict):
            return data
    raise SnapfsError(
        f"{names.journal} is missing or unreadable, so nothing can be resumed; leave out --resume.",
        path=names.journal,
    )


def is_written(names: Names) -> bool:
    """Whether its facts are whole: they are written when everything else is on the disk."""
    try:
        read_facts(partial_path(names.facts), names.name)
    except SnapfsError:
        return False
    return all(path.exists() or partial_path(path).exists() for path in names.finished)


def _owners(names: Names) -> set[int | None]:
    """To whom its files may belong: ourselves, and who owns the image, by a journal of our own."""
    owners: set[int | None] = {os.geteuid()}
    with contextlib.suppress(OSError, SnapfsError):
        if os.lstat(names.journal).st_uid == os.geteuid():
            owner = what_is_left(names).get("owner")
            owners |= {owner} if isinstance(owner, int) else set()
    return owners


def _give_names(names: Names) -> None:
    owners = _owners(names)
    for path in names.finished:
        partial = partial_path(path)
        left = open_left(partial, owners)
        if left is not None:
            try:
                # Whoever was killed may not have come to it: a power loss would leave the name, with nothing in it.
                os.fsync(left)
                _rename(partial, path)
            finally:
                os.close(left)
    sync_directory(names.directory)


def _rename(partial: Path, path: Path) -> None:
    try:
        libc.rename_new(partial, path)
    except OSError as error:
        # A filesystem that cannot be asked for a new name; nobody else has the turn.
        if error.errno not in (errno.EINVAL, errno.ENOSYS) or os.path.lexists(path):
            raise
        os.rename(partial, path)
