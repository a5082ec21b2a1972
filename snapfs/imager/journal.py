"""What is already durable in an unfinished backup: DEST.partial.journal, one JSON value a line.

    line 1     facts: what is imaged and how; a backup is resumed only when they are the same again
    line 2     [[offset, length, is_zeros], ...]: all extents to image
    each more  [[index, blake3, [[offset, length], ...]], ...]: extents that are on the disk, and what of them could
               not be read

A line is written after the data it tells of were synced, so what it says is true. A line that was cut off by a
crash says nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from snapfs.destination.access import NEW_MODE
from snapfs.destination.unfinished import open_left, sync_directory
from snapfs.errors import BusyError, SnapfsError
from snapfs.imager.extents import Extent, read_extent, read_range
from snapfs.whole import put_whole


@dataclass(frozen=True, slots=True)
class Done:
    """An extent that was written: its digest, and (offset, length) of what in it could not be read."""

    digest: bytes
    unread: list[tuple[int, int]] = field(default_factory=list)


class Journal:
    """`done` maps the index of each extent that is durable to what is known of it."""

    def __init__(self, fd: int, path: Path, extents: Sequence[Extent], done: dict[int, Done]) -> None:
        self._fd, self.path, self.extents, self.done = fd, path, extents, done

    @classmethod
    def create(cls, path: Path, facts: Mapping[str, Any], extents: Sequence[Extent]) -> Journal:
        """A new one; replaces what an older backup to the same place left."""
        left = open_left(path, {os.geteuid()})
        if left is not None:
            os.unlink(path)
            os.close(left)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, NEW_MODE)
        _lock(fd, path)
        plan = [[extent.offset, extent.length, extent.is_zeros] for extent in extents]
        journal = cls(fd, path, extents, {})
        try:
            journal._append(dict(facts), plan)
            # Before anything is written that the one before it tells of, which a power loss would bring back.
            sync_directory(path.parent)
        except BaseException:
            # Half a plan is none: left behind it would promise a --resume that cannot be.
            os.unlink(path)
            journal.close()
            raise
        return journal

    @classmethod
    def resume(cls, path: Path, facts: Mapping[str, Any]) -> Journal:
        """The journal at `path`; SnapfsError when there is none or it is about something else."""
        fd = open_left(path, {os.geteuid()})
        if fd is None:
            raise SnapfsError(f"There is nothing to resume: {path} does not exist; leave out --resume.", path=path)
        try:
            was, plan, done, length = _parse(fd, path)
            differing = [key for key in facts if facts[key] != was.get(key)]
            if differing:
                raise SnapfsError(
                    f"{path} is of another backup (its {differing[0]} differs), so it cannot be resumed; "
                    "say --force instead of --resume to begin again.",
                    path=path,
                )
            os.ftruncate(fd, length)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd, path, plan, done)

    def add(self, finished: Mapping[int, Done]) -> None:
        """Note extents whose data are durable; what was noted of one before counts no more."""
        self._append([[index, one.digest.hex(), one.unread] for index, one in finished.items()])
        self.done.update(finished)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def _append(self, *values: Any) -> None:
        data = b"".join(json.dumps(value).encode() + b"\n" for value in values)
        os.lseek(self._fd, 0, os.SEEK_END)
        put_whole(self._fd, memoryview(data))
        os.fdatasync(self._fd)


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise BusyError(
            f"{path} is in use by another backup to the same place; wait for its end.", path=path
        ) from error


def _parse(fd: int, path: Path) -> tuple[dict[str, Any], list[Extent], dict[int, Done], int]:
    """Facts, plan, what is done, and how many bytes of the file make sense."""
    try:
        with open(fd, "rb", closefd=False) as file:
            lines = file.read().splitlines(keepends=True)
        facts = dict(json.loads(lines[0]))
        plan = [read_extent(offset, length, is_zeros=bool(zeros)) for offset, length, zeros in json.loads(lines[1])]
        noted = list(takewhile(lambda line: line.endswith(b"\n"), lines[2:]))
        done = {index: digest for line in noted for index, digest in _finished(line, len(plan))}
    except (OSError, ValueError, TypeError, IndexError, RecursionError) as error:
        raise SnapfsError(
            f"{path} is unreadable, so nothing can be resumed; say --force instead of --resume.", path=path
        ) from error
    return facts, plan, done, sum(map(len, lines[: 2 + len(noted)]))


def _finished(line: bytes, extent_count: int) -> Iterator[tuple[int, Done]]:
    for index, digest, unread in json.loads(line):
        if type(index) is not int or not 0 <= index < extent_count:
            raise ValueError(f"there is no extent {index!r:.40}")
        yield index, Done(bytes.fromhex(digest), [read_range(offset, length) for offset, length in unread])
