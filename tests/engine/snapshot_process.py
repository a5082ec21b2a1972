"""Processes that read snapshots all the time, or look for their holes, and know what is right: of what is kept the
bytes, of what is free zeros, of what is released and of what is over the right error; while any of that begins,
before or after.

They are forked before anything begins, and told over a pipe what is done to a snapshot: before it is done, so that a
read that sees it is right, and afterwards, so that one that does not is wrong.
"""

from __future__ import annotations

import contextlib
import os
import random
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from engine_rig import Rig
from lots import SECTOR_BYTES, Retelling

from cow.disk.header import read_header
from cow.errors import BlockReleased, SnapshotEnded
from cow.seeking import SeekingReader

_READS_OF_WHAT_ENDED = 3


class Fate(Enum):
    """What becomes of blocks, or of the whole snapshot."""

    FREE = auto()
    RELEASED = auto()
    ENDED = auto()


@dataclass(frozen=True)
class Begin:
    """Read that snapshot, which holds what there was after so many writes of each author."""

    generation: int
    told: Sequence[int]


@dataclass(frozen=True)
class Told:
    """These blocks of a snapshot meet that fate: from now on perhaps, or (`is_done`) surely."""

    generation: int
    fate: Fate
    first: int
    end: int
    is_done: bool


@dataclass(frozen=True)
class ReadWhole:
    """Read all of every snapshot once, and answer."""


@dataclass(frozen=True)
class Done:
    """An answer: that snapshot is read no more, or all are read; after so many reads."""

    generation: int
    reads: int


class _Wrong(Exception):
    """A read that is not right."""


class _Reading:
    """One snapshot in this process. `hear` takes what the pipe has."""

    def __init__(self, rig: Rig, generation: int, content: bytes, hear: Callable[[], None]) -> None:
        self._rig, self.generation, self._content, self._hear = rig, generation, content, hear
        blocks = range(rig.geometry.block_count)
        # Of each block whether that is not so (0), may be so (1), is so (2); of the whole the same.
        self.marks = {Fate.FREE: bytearray(blocks), Fate.RELEASED: bytearray(blocks), Fate.ENDED: bytearray(1)}
        for marks in self.marks.values():
            marks[:] = bytes(len(marks))
        self._reader: SeekingReader | None = None
        self.reads = 0

    def note(self, told: Told) -> None:
        marks = self.marks[told.fate]
        low, high = (0, 1) if told.fate is Fate.ENDED else (told.first, told.end)
        marks[low:high] = bytes([2 if told.is_done else 1]) * (high - low)

    @property
    def is_over(self) -> bool:
        return self.marks[Fate.ENDED][0] == 2

    def _open(self) -> SeekingReader:
        """SnapshotEnded: there is none."""
        store = self._rig.store
        assert store is not None
        if self._reader is None:
            header = read_header(store.path)
            facts = None if header is None else header.cut_of(self.generation)
            if facts is None or facts.is_hidden:
                raise SnapshotEnded("not in the list")
            try:
                cut = store.open_cut(self.generation, writable=False, header=header)
            except FileNotFoundError:
                raise SnapshotEnded("its files are gone") from None
            self._cut = cut
            self._reader = SeekingReader(replace(store, cut=cut), self._rig.image)
        return self._reader

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._cut.let_go()
            self._reader = None

    def change(self, dice: random.Random) -> None:
        """What a server does with a reader now and then."""
        if self._reader is not None:
            dice.choice([self._reader.rest, self._reader.forget, self._reader.trim, self.close])()

    def read(self, offset: int, length: int, *, quickly: bool, seeks: bool = False) -> None:
        """With `seeks` only what is said to be a hole there. _Wrong: not what it has to be."""
        first, end = self._rig.geometry.span(offset, length)
        before = {fate: bytes(marks) for fate, marks in self.marks.items()}
        view = memoryview(bytearray(length))
        self.reads += 1
        where = f"{length} bytes at {offset} (blocks {first} to {end - 1}) of cut {self.generation}"
        try:
            reader = self._open()
            if seeks:
                view = view[: _hole_bytes(reader, offset, length, quickly=quickly)]
            elif not (quickly and reader.try_read(view, offset)):
                reader.read_into(view, offset)
        except SnapshotEnded as error:
            self._hear()
            if not self.marks[Fate.ENDED][0]:
                raise _Wrong(f"{where}: it has ended, they say: {error}") from error
        except BlockReleased as error:
            self._hear()
            if not any(self.marks[Fate.RELEASED][first:end]):
                raise _Wrong(f"{where}: released, they say: {error}") from error
        except Exception as error:
            self._hear()
            raise _Wrong(f"{where}: {error}; {self._said(first, min(end, first + 9))}") from error
        else:
            if before[Fate.ENDED][0] == 2:
                raise _Wrong(f"{where}: it was over, and could be read")
            if not seeks and 2 in before[Fate.RELEASED][first:end]:
                raise _Wrong(f"{where}: released, and could be read")
            if view:
                self._compare(view, offset, before[Fate.FREE], where)

    def _compare(self, view: memoryview, offset: int, free_before: bytes, where: str) -> None:
        first, end = self._rig.geometry.span(offset, len(view))
        if not any(free_before[first:end]) and view == self._content[offset : offset + len(view)]:
            return
        self._hear()
        for block_no in range(first, end):
            start, count = self._rig.geometry.extent(block_no, block_no + 1)
            low, high = max(start, offset), min(start + count, offset + len(view))
            found = view[low - offset : high - offset]
            is_content = free_before[block_no] != 2 and found == self._content[low:high]
            is_zeros = self.marks[Fate.FREE][block_no] and found == bytes(high - low)
            if not (is_content or is_zeros):
                wrong = [at for at in range(high - low) if found[at] != self._content[low + at]]
                at = low + wrong[0] & -SECTOR_BYTES
                here, wanted = (bytes(view[at - offset :][:16]).hex(), self._content[at : at + 16].hex())
                raise _Wrong(
                    f"{where}: block {block_no}, {len(wrong)} bytes, at {at}: {here} instead of {wanted}; "
                    + self._said(block_no, block_no + 1)
                )

    def _said(self, first: int, end: int) -> str:
        """What the other process has told of it."""
        ended, released, free = (self.marks[fate] for fate in (Fate.ENDED, Fate.RELEASED, Fate.FREE))
        return f"ended {ended[0]}, released {list(released[first:end])}, free {list(free[first:end])}"


def _hole_bytes(reader: SeekingReader, offset: int, length: int, *, quickly: bool) -> int:
    """How much is no data, from there on."""
    is_found, found = False, None
    if quickly:
        is_found, found = reader.try_seek(offset, offset + length, for_hole=False)
    if not is_found:
        found = reader.seek(offset, offset + length, for_hole=False)
    return length if found is None else found - offset


class _Process:
    """Within the process."""

    def __init__(self, rig: Rig, pipe: Connection, retelling: Retelling, seed: int) -> None:
        self._rig, self._pipe, self._retelling = rig, pipe, retelling
        self._dice = random.Random(seed)
        self._readings: dict[int, _Reading] = {}
        self._is_wanted, self._is_asked = True, False

    def run(self) -> None:
        """Until the pipe is closed."""
        while self._is_wanted:
            self._hear(wait=not self._readings)
            if self._readings:
                self._read_one(self._dice.choice(list(self._readings.values())))
            if self._is_asked:
                self._is_asked = False
                for reading in list(self._readings.values()):
                    self._read_all(reading)
                self._pipe.send(Done(0, 0))

    def _read_one(self, reading: _Reading) -> None:
        image_bytes = self._rig.geometry.image_bytes
        if self._dice.random() < 0.02:
            reading.change(self._dice)
        offset = self._dice.randrange(image_bytes)
        length = min(self._dice.choice([1, 700, 5000, 70_000, image_bytes]), image_bytes - offset)
        reading.read(offset, length, quickly=self._dice.random() < 0.5, seeks=self._dice.random() < 0.25)
        if reading.is_over:
            for _ in range(_READS_OF_WHAT_ENDED):
                reading.read(self._dice.randrange(image_bytes), 1, quickly=self._dice.random() < 0.5)
            reading.close()
            del self._readings[reading.generation]
            self._pipe.send(Done(reading.generation, reading.reads))

    def _read_all(self, reading: _Reading) -> None:
        """Run by run of what is released and what is not."""
        first, count = 0, self._rig.geometry.block_count
        marks = bytes(reading.marks[Fate.RELEASED])
        while first < count:
            end = first + 1
            while end < count and marks[end] == marks[first]:
                end += 1
            reading.read(*self._rig.geometry.extent(first, end), quickly=False)
            first = end

    def _hear(self, *, wait: bool = False) -> None:
        with contextlib.suppress(EOFError):
            while wait or self._pipe.poll():
                wait = False
                self._take(self._pipe.recv())
            return
        self._is_wanted = False

    def _take(self, message: object) -> None:
        match message:
            case Begin(generation, told):
                content = self._retelling.after(told)
                self._readings[generation] = _Reading(self._rig, generation, content, self._hear)
            case Told():
                self._readings[message.generation].note(message)
            case ReadWhole():
                self._is_asked = True


class SnapshotProcess:
    """One, seen from the process that changes everything."""

    def __init__(self, rig: Rig, retelling: Retelling, seed: int, before: Sequence[SnapshotProcess]) -> None:
        """`before`: those that there are, of which it must not keep the pipes open."""
        self.pipe, inner = Pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                for other in (self, *before):
                    other.pipe.close()
                inner_process = _Process(rig, inner, retelling, seed)
                inner_process.run()
            except BaseException:
                with contextlib.suppress(OSError):
                    inner.send(traceback.format_exc())
            finally:
                os._exit(0)
        inner.close()

    def end(self) -> None:
        self.pipe.close()
        os.waitpid(self.pid, 0)
