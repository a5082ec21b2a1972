"""A store from inside: made and removed by who mounts, and read by who may enter it. Rules: see `stores`."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Final

from cow import foreign_names, open_plain, remove_store
from snapfs.errors import SnapfsError
from snapfs.system.descriptors import path_of
from snapfs.system.stores import check_owner, name_of, unreachable

_STORE_FILE: Final = re.compile(r"cut-[0-9]+/[a-z]+")


def make_store(path: Path) -> tuple[Path, bool]:
    """As `hold_store`, for who is going to write to it: the directory is made if need be (then True), has to be
    this user's own, and is private from then on. SnapfsError: it is not; OSError: the disk refuses."""
    parent_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        made = _make_directory(path.name, parent_fd)
        try:
            fd = os.open(path.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
        except OSError as error:
            raise unreachable(path, error) from error
    finally:
        os.close(parent_fd)
    held = path_of(fd)
    try:
        if os.fstat(fd).st_uid == os.geteuid() and not foreign_names(held):
            with suppress(OSError):
                os.fchmod(fd, 0o700)
        check_owner(path, os.fstat(fd), os.geteuid())
    except BaseException:
        os.close(fd)
        raise
    return held, made


def _make_directory(name: str, parent_fd: int) -> bool:
    try:
        os.mkdir(name, 0o700, dir_fd=parent_fd)
    except FileExistsError:
        return False
    os.fsync(parent_fd)
    return True


def remove_held(store: Path) -> None:
    """Remove what is ours of a held store; its directory too, when it is then empty and still has its name."""
    remove_store(store)
    path = name_of(store)
    with suppress(OSError):
        parent_fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.path.samestat(os.stat(path.name, dir_fd=parent_fd, follow_symlinks=False), os.stat(store)):
                os.rmdir(path.name, dir_fd=parent_fd)
        finally:
            os.close(parent_fd)


def read_store_file(store: Path, name: str) -> bytes:
    """What the file `name` of a held store holds; SnapfsError when it is no plain file of the store's owner."""
    if not _STORE_FILE.fullmatch(name):
        raise SnapfsError(f"The snapfs on {name_of(store)} names {name!r}, which is no file of a store; mount again.")
    try:
        with open(open_plain(store / name, os.O_RDONLY), "rb") as file:
            return file.read()
    except OSError as error:
        raise SnapfsError(f"{name_of(store) / name} cannot be read: {error.strerror}; take a new cut.") from error
