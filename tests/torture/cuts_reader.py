"""The verifying reader of the campaign of cuts, a process of its own: `cuts_reader.py FILE SEED WRITERS`.

Each line on its stdin is a question in JSON, each on its stdout an answer: `{"wrong": null}`, or what is wrong.

    whole     the present snapshot, never looked at before: each writer's blocks are as after its first n writes, for
              an n between what was done before the cut ("low") and tried after it ("high"); of one who writes
              through the page cache, whose order the kernel does not keep, each block by itself
    again     what was found then, but for "released" ranges (offset, length), which are errors (ENODATA)
    ended     nothing can be read (EIO)
    across    again and again, until a new cut ends it (ESTALE): what is read before that is what was found then.
              Answers twice: when it has begun, and when the end came
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from cuts_content import BLOCK, HEAD, MAGIC, Sequence, contents, is_buffered, sequences

PIECE = 1 << 20
_ACROSS_S = 30.0


class WrongError(Exception):
    """The snapshot is not what it must be."""


class Follower:
    """Replays one writer: `last` has for each of its blocks the last write up to `number` that covered it."""

    def __init__(self, sequence: Sequence) -> None:
        self.sequence, self.number = sequence, 0
        self.last = np.zeros(sequence.count, np.uint64)

    def follow(self, number: int) -> None:
        for one in range(self.number + 1, number + 1):
            first, end = self.sequence.place(one)
            self.last[first - self.sequence.first : end - self.sequence.first] = one
        self.number = max(self.number, number)

    def check(self, found: Any, low: int, high: int) -> None:
        """`found` are the numbers that the blocks name."""
        if is_buffered(self.sequence.writer):
            self._check_each(found, low, high)
        else:
            self._check_all(found, low, high)

    def _check_all(self, found: Any, low: int, high: int) -> None:
        # Every write covers a block, so the last one is named.
        number, writer = int(found.max()), self.sequence.writer
        if not low <= number <= high:
            raise WrongError(f"writer {writer}: the last write is {number}, due is one of {low} to {high}")
        self.follow(number)
        self._judge(found, found == self.last, f"as after write {number}")

    def _check_each(self, found: Any, low: int, high: int) -> None:
        self.follow(low)
        right = found == self.last
        for one in range(low + 1, high + 1):
            first, end = self.sequence.place(one)
            span = slice(first - self.sequence.first, end - self.sequence.first)
            right[span] |= found[span] == one
        self._judge(found, right, f"as after one of the writes {low} to {high}")

    def _judge(self, found: Any, right: Any, wanted: str) -> None:
        if not right.all():
            at = int(np.flatnonzero(~right)[0])
            raise WrongError(
                f"writer {self.sequence.writer}: {int((~right).sum())} blocks are not {wanted}; the first is block "
                f"{self.sequence.first + at}, of write {int(found[at])}, where the last due is {int(self.last[at])}"
            )


class Reader:
    def __init__(self, path: Path, seed: int, writer_count: int) -> None:
        self._path, self._size = path, os.stat(path).st_size
        self._followers = [Follower(one) for one in sequences(seed, writer_count, self._size // BLOCK)]
        self._found = np.zeros(self._size // BLOCK, np.uint64)
        self._buffer = mmap.mmap(-1, PIECE)
        self._turn = 0

    @contextmanager
    def _opened(self, *, direct: bool | None = None) -> Iterator[int]:
        """By turns through the page cache and past it."""
        self._turn += 1
        is_direct = self._turn % 2 == 0 if direct is None else direct
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | (os.O_DIRECT if is_direct else 0))
        try:
            yield fd
        finally:
            os.close(fd)

    def _piece(self, fd: int, offset: int) -> Any:
        """As rows of blocks."""
        wanted, count = min(PIECE, self._size - offset), 0
        while count < wanted:
            # Of a read that fails half-way the kernel gives what it has, and the error to the next one.
            more = os.preadv(fd, [memoryview(self._buffer)[count:wanted]], offset + count)
            if not more:
                raise WrongError(f"the snapshot ends at {offset + count}")
            count += more
        return np.frombuffer(self._buffer, np.uint8, count).reshape(-1, BLOCK)

    def _offsets(self) -> range:
        return range(0, self._size, PIECE)

    # --- questions -------------------------------------------------------------------------------------------

    def whole(self, low: list[int], high: list[int]) -> None:
        with self._opened() as fd:
            for offset in self._offsets():
                rows, first = self._piece(fd, offset), offset // BLOCK
                head = rows[:, : HEAD.itemsize].copy().view(HEAD)[:, 0]
                self._found[first : first + len(rows)] = head["number"]
                if not (head["magic"] == MAGIC).all():
                    raise WrongError(f"at {offset} is something that nobody has written")
                self._compare(rows, first)
        for follower, one_low, one_high in zip(self._followers, low, high, strict=True):
            own = follower.sequence
            follower.check(self._found[own.first : own.first + own.count], one_low, one_high)

    def _compare(self, rows: Any, first: int) -> None:
        """Every byte of `rows`, the blocks from `first` on, with what was written there as their numbers say."""
        share = self._followers[0].sequence.count
        end = first + len(rows)
        for start in range(first - first % share, end, share):
            span = slice(max(start, first) - first, min(start + share, end) - first)
            blocks = np.arange(first + span.start, first + span.stop)
            wanted = contents(start // share, self._found[first + span.start : first + span.stop], blocks)
            wrong = np.flatnonzero((rows[span] != wanted).any(axis=1))
            if len(wrong):
                block = int(blocks[wrong[0]])
                head = rows[block - first, : HEAD.itemsize].copy().view(HEAD)[0]
                due = int(self._found[block])
                raise WrongError(f"block {block} is not as after write {due}, it begins with {head}")

    def again(self, released: list[list[int]]) -> None:
        gone = {piece for offset, length in released for piece in range(offset, offset + length, PIECE)}
        with self._opened() as fd:
            for offset in self._offsets():
                code = self._outcome(fd, offset)
                if code != (errno.ENODATA if offset in gone else 0):
                    raise WrongError(f"at {offset} is {_name(code)}, released are {released}")

    def ended(self) -> None:
        with self._opened(direct=True) as fd:
            for offset in self._offsets():
                code = self._outcome(fd, offset)
                if code != errno.EIO:
                    raise WrongError(f"at {offset} is {_name(code)} after the end of the snapshot")

    def across(self) -> None:
        with self._opened() as fd:
            answer(None)
            until = time.monotonic() + _ACROSS_S
            codes = {0}
            # What the kernel has cached it may still give until the new cut is shown.
            while codes != {errno.ESTALE}:
                codes = {self._outcome(fd, offset) for offset in self._offsets()}
                if not codes <= {0, errno.ESTALE}:
                    raise WrongError(f"reads across a cut gave {[_name(code) for code in codes]}")
                if time.monotonic() > until:
                    raise WrongError(f"a file of the snapshot before could still be read after {_ACROSS_S:g} s")

    def _outcome(self, fd: int, offset: int) -> int:
        """0 when all of the piece is what was found at first; else the error."""
        try:
            rows = self._piece(fd, offset)
        except OSError as error:
            return error.errno or errno.EIO
        self._compare(rows, offset // BLOCK)
        return 0


def _name(code: int) -> str:
    return errno.errorcode[code] if code else "what was there"


def answer(wrong: str | None) -> None:
    print(json.dumps({"wrong": wrong}), flush=True)


def main(words: list[str]) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    path, seed, writer_count = words
    reader = Reader(Path(path), int(seed), int(writer_count))
    for line in sys.stdin:
        question = json.loads(line)
        try:
            getattr(reader, question.pop("ask"))(**question)
        except (WrongError, OSError) as error:
            answer(f"{type(error).__name__}: {error}")
        else:
            answer(None)


if __name__ == "__main__":
    main(sys.argv[1:])
