"""DEST and its manifest appear together, or the older pair stays whole.

Two names cannot be given in one step, so one of them decides: DEST. The manifest says, before, which file it is
of (size, modification time, inode), and whoever reads a backup looks at both names of the manifest:

    crash                       DEST    FILE    FILE.partial    believed
    before (1)                  old     old     none, or new    FILE: FILE.partial is of another file
    (1) DEST.partial -> DEST    new     old     new             FILE.partial: it is of this DEST
    (2) FILE.partial -> FILE    new     new     none            FILE

The next backup to DEST does step (2) first, should it still be due.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snapfs.destination.access import Access
from snapfs.destination.names import partial_path
from snapfs.destination.place import Place
from snapfs.destination.unfinished import Unfinished, open_left, sync_directory
from snapfs.destination.write_errors import write_errors
from snapfs.errors import SnapfsError
from snapfs.system.file_kinds import read_small

_NS_PER_S = 1_000_000_000


def identity(status: os.stat_result) -> dict[str, int]:
    """What a manifest says of the file that it belongs to, under the key "file"."""
    return {"inode": status.st_ino, "size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def give_names(dest: Unfinished, manifest: Unfinished, access: Access) -> None:
    """Both are written; make them durable, then let them appear."""
    for one in (manifest, dest):
        one.settle(access)
    for one in (manifest, dest):
        one.check_may_be_named()
    for one in (manifest, dest):
        one.keep()
    dest.give_name()
    manifest.give_name()


def manifest_to_read(backup: Path, file: Path) -> Path:
    """Which of FILE and FILE.partial is of the backup that is there."""
    pending = partial_path(file)
    return pending if _is_of(pending, backup) else file


def complete_names(dest: Place, manifest: Place) -> None:
    """If a crash came between the two names, give the second one now."""
    pending = partial_path(manifest.real)
    if dest.is_new or not _is_of(pending, dest.real):
        return
    with write_errors(str(pending), "try again"):
        owner = None if dest.status is None else dest.status.st_uid
        fd = open_left(pending, {os.geteuid(), owner})
        if fd is not None:
            os.rename(pending, manifest.real)
            os.close(fd)
            sync_directory(pending.parent)


def _is_of(pending: Path, backup: Path) -> bool:
    try:
        if not os.lstat(pending).st_size:
            return False
        facts: Any = json.loads(read_small(pending, "", flags=os.O_NOFOLLOW))
        return is_same(facts["file"], os.stat(backup))
    except (OSError, SnapfsError, ValueError, KeyError, TypeError, RecursionError):
        return False


def is_same(named: Mapping[str, int], status: os.stat_result) -> bool:
    """Whether that is the file of a manifest, by what that says of it.

    A copy that keeps times counts too, where times are so fine that two files cannot have the same.
    """
    is_fine = bool(status.st_mtime_ns % _NS_PER_S)
    found = identity(status)
    keys = ("size_bytes", "mtime_ns") if is_fine else ("size_bytes", "mtime_ns", "inode")
    return all(named[key] == found[key] for key in keys)
