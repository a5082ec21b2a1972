"""Two stages side by side: one reads and hashes, the other writes. Memory is a few buffers, used again and again.

    reader (the caller's thread)  announce what comes soon; take a buffer, read a piece into it, hash it, hand it on
    writer (a thread)             write it, give the buffer back; after the last piece of an extent say so

Rules
- Extents are written and said to be finished in the order they are given.
- When one stage fails, the other comes to an end first: nobody touches source or target after `run` has returned.
  What the writer had been handed before is still written.
"""

from __future__ import annotations

import mmap
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from snapfs.imager.extents import Extent
from snapfs.imager.hashing import Hasher, NewHasher, plain_hasher
from snapfs.imager.pace import Pace
from snapfs.imager.unread import Ranges, pieces_with_zeros

# Large enough that what a request costs does not matter, small enough that both stages are busy in one extent.
PIECE_BYTES: Final = 2 << 20
_BUFFERS: Final = 6
# Enough for a disk to have several requests at a time, and little that was fetched for nothing when we end.
_AHEAD_BYTES: Final = 8 << 20

Read = Callable[[memoryview, int], None]
Announce = Callable[[int, int], None]
Write = Callable[[memoryview, int], None]
Finished = Callable[[int, bytes], None]


@dataclass(frozen=True, slots=True)
class _Part:
    """`length` bytes at `offset` of an extent."""

    index: int
    extent: Extent
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Piece:
    buffer: memoryview
    view: memoryview
    offset: int
    finishes: tuple[int, bytes] | None


class Stages:
    """`read` fills a buffer, `write` takes one; `finished` gets index and digest of each extent that was written.
    `announce` is told the offset and length of what will be read soon."""

    def __init__(
        self,
        read: Read,
        write: Write,
        finished: Finished,
        advance: Callable[[int], None],
        pace: Pace,
        unread: Ranges | None = None,
        new_hasher: NewHasher = plain_hasher,
        announce: Announce | None = None,
    ) -> None:
        """Bytes in `unread` are hashed as zeros, whatever they are."""
        self._read, self._write, self._finished = read, write, finished
        self._unread, self._new_hasher = unread or Ranges(), new_hasher
        self._advance, self._pace, self._announce = advance, pace, announce
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[_Piece | None] = queue.SimpleQueue()
        self._failure: BaseException | None = None
        for _ in range(_BUFFERS):
            # Page-aligned, as O_DIRECT wants it.
            self._free.put(memoryview(mmap.mmap(-1, PIECE_BYTES)))

    def run(self, extents: Iterable[tuple[int, Extent]]) -> None:
        """Copy the extents; raises what the stage that failed first raised."""
        writer = threading.Thread(target=self._run_writer, name="writer", daemon=True)
        writer.start()
        try:
            for part in self._announced(_parts(extents)):
                if part.offset == part.extent.offset:
                    hasher = self._new_hasher(part.extent)
                self._read_part(part, hasher)
        finally:
            self._full.put(None)
            writer.join()
        self._check()

    def _announced(self, parts: Iterator[_Part]) -> Iterator[_Part]:
        """The same, each when what follows it was announced."""
        if self._announce is None:
            yield from parts
            return
        ahead: deque[_Part] = deque()
        ahead_bytes = 0
        for part in parts:
            self._announce(part.offset, part.length)
            ahead.append(part)
            ahead_bytes += part.length
            while ahead_bytes > _AHEAD_BYTES:
                ahead_bytes -= ahead[0].length
                yield ahead.popleft()
        yield from ahead

    def _read_part(self, part: _Part, hasher: Hasher) -> None:
        self._pace.wait_for(part.length)
        buffer = self._free.get()
        self._check()
        view = buffer[: part.length]
        self._read(view, part.offset)
        for data in pieces_with_zeros(view, part.offset, self._unread):
            hasher.update(data)
        is_last = part.offset + part.length == part.extent.end
        finishes = (part.index, hasher.digest()) if is_last else None
        self._full.put(_Piece(buffer, view, part.offset, finishes))
        self._advance(part.length)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run_writer(self) -> None:
        while (piece := self._full.get()) is not None:
            if self._failure is None:
                try:
                    self._write(piece.view, piece.offset)
                    if piece.finishes is not None:
                        self._finished(*piece.finishes)
                except BaseException as error:
                    self._failure = error
            # Also after a failure: the reader may be waiting for it.
            self._free.put(piece.buffer)


def _parts(extents: Iterable[tuple[int, Extent]]) -> Iterator[_Part]:
    """Of the extents, in order, as large as a buffer at most."""
    for index, extent in extents:
        for offset, length in extent.pieces(PIECE_BYTES):
            yield _Part(index, extent, offset, length)
