"""The chunks of a snapshot, as tests compare them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from mounted import Mounted

MIB = 1 << 20


class Seen(NamedTuple):
    """What tools take for the same file."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def folder(instance: Mounted, name: str = "newest") -> Path:
    return instance.snap / ".chunks" / name


def seen(path: Path) -> dict[str, Seen]:
    """All chunks in a folder."""
    found = {}
    for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
        info = entry.stat(follow_symlinks=False)
        found[entry.name] = Seen(info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
    return found


def changed(before: dict[str, Seen], after: dict[str, Seen]) -> list[str]:
    """The names of those that are not as they were."""
    assert before.keys() == after.keys()
    return [name for name in before if before[name] != after[name]]


def joined(path: Path) -> bytes:
    """What the chunks in a folder are together."""
    return b"".join((path / name).read_bytes() for name in seen(path))


def write(instance: Mounted, offset: int, data: bytes) -> None:
    with instance.live_file.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, offset)
        os.fsync(file.fileno())
