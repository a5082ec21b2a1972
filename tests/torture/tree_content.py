"""What the writers of files do, and in what order: all of it follows from a seed.

Each writer has a directory with some files of its own, and what it does to them has numbers from 1 on: a file is
written in place, replaced by a new one of its name, or removed, and each is synced before the next one begins. What
a file holds follows from the number of the action that it is from, so whoever has the directory as it was at some
instant can tell whether there was such an instant (`wrong_files`).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Final

KIB: Final = 1 << 10
SLOTS: Final = 24
_ACTIONS: Final = ("rewrite", "rewrite", "rewrite", "replace", "replace", "remove")
_LONGEST: Final = (1, 6 * KIB, 6 * KIB, 64 * KIB, 64 * KIB, 400 * KIB)
ABSENT: Final = ""


@dataclass(frozen=True)
class Action:
    """`what` becomes of the file of this slot."""

    what: str
    slot: int


@dataclass(frozen=True)
class Author:
    """One of the writers of a campaign."""

    seed: int
    writer: int

    def action(self, number: int) -> Action:
        return _action(self, number)

    def content(self, number: int) -> bytes:
        """What a file holds after this action; half of it compresses."""
        draw = _draw(self, "content", number)
        length = draw.randint(0, draw.choice(_LONGEST))
        return draw.randbytes(length // 2) + bytes([number & 0xFF]) * (length - length // 2)


def _draw(author: Author, what: str, number: int) -> random.Random:
    return random.Random(f"{author.seed} {author.writer} {what} {number}")


@lru_cache(maxsize=1_000_000)
def _action(author: Author, number: int) -> Action:
    draw = _draw(author, "action", number)
    return Action(draw.choice(_ACTIONS), draw.randrange(SLOTS))


@lru_cache(maxsize=100_000)
def _wanted(author: Author, number: int) -> str:
    return _digest(author.content(number))


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@dataclass
class Files:
    """The files of one writer after its first actions: for each slot the action that its content is from."""

    author: Author
    count: int = 0
    numbers: dict[int, int] = field(default_factory=dict)

    def follow(self, count: int) -> None:
        for number in range(self.count + 1, count + 1):
            action = self.author.action(number)
            if action.what == "remove":
                self.numbers.pop(action.slot, None)
            else:
                self.numbers[action.slot] = number
        self.count = max(self.count, count)

    def digest(self, slot: int) -> str:
        number = self.numbers.get(slot)
        return ABSENT if number is None else _wanted(self.author, number)

    def differing(self, found: dict[int, str]) -> set[int]:
        return {slot for slot in range(SLOTS) if found[slot] != self.digest(slot)}


def directory_of(root: Path, writer: int) -> Path:
    return root / f"writer-{writer}"


def file_of(directory: Path, slot: int) -> Path:
    return directory / f"file-{slot}"


def _found(directory: Path) -> dict[int, str]:
    def one(slot: int) -> str:
        try:
            return _digest(file_of(directory, slot).read_bytes())
        except FileNotFoundError:
            return ABSENT

    return {slot: one(slot) for slot in range(SLOTS)}


@dataclass(frozen=True)
class Instant:
    """A cut: what each writer had `done` before it, and had begun (`tried`) after it. `is_frozen`: the filesystem
    was at rest, so nothing is in it without what went before; else it is known only that nothing synced is lost."""

    done: tuple[int, ...]
    tried: tuple[int, ...]
    is_frozen: bool = True


def wrong_files(root: Path, seed: int, instant: Instant) -> Iterator[str]:
    """Sentences about the directories of all writers below `root`."""
    for writer, (done, tried) in enumerate(zip(instant.done, instant.tried, strict=True)):
        files = Files(Author(seed, writer))
        files.follow(done)
        found = _found(directory_of(root, writer))
        wrong = _wrong_frozen(files, found, tried) if instant.is_frozen else _wrong_synced(files, found, tried)
        if wrong:
            yield f"writer {writer}, actions {done} to {tried}: {wrong}"


def _wrong_frozen(files: Files, found: dict[int, str], tried: int) -> str:
    """All is as after one of the actions up to `tried`, but for what the next one was at."""
    first = ""
    for count in range(files.count, tried + 1):
        files.follow(count)
        differing = files.differing(found)
        if differing <= ({files.author.action(count + 1).slot} if count < tried else set()):
            return ""
        first = first or f"as after {count} all but the files {sorted(differing)}"
    return first


def _wrong_synced(files: Files, found: dict[int, str], tried: int) -> str:
    """What nothing was done to since is as it was."""
    touched = {files.author.action(number).slot for number in range(files.count + 1, tried + 1)}
    differing = files.differing(found) - touched
    return f"the files {sorted(differing)} are not as they were synced" if differing else ""
