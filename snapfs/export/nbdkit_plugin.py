"""A plugin for nbdkit's Python: a snapshot, and which of it is used.

It is loaded by the system's Python, which may be another than ours, so it imports nothing but what every Python has.

    nbdkit python nbdkit_plugin.py file=FD extents=FD bytes=N

`file` is open on the snapshot; `extents` on pairs of 64-bit numbers in the machine's order, first and end in bytes of
each used stretch, ascending. Everything else reads as zeros, and is told to be a hole. Source of the calls:
nbdkit-python-plugin(3).
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator

import nbdkit

API_VERSION = 2
_HOLE = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
_MOST_EXTENTS = 4096

_given: dict[str, int] = {}
# Borders of used stretches, from the first of one to the end of the next: even places begin one, odd ones end one.
_borders = array("Q")


def thread_model() -> int:
    model: int = nbdkit.THREAD_MODEL_PARALLEL
    return model


def config(key: str, value: str) -> None:
    _given[key] = int(value)


def config_complete() -> None:
    if sorted(_given) != ["bytes", "extents", "file"]:
        raise RuntimeError("file, extents and bytes have to be given")
    size = os.fstat(_given["extents"]).st_size
    _borders.frombytes(os.pread(_given["extents"], size, 0))


def open(readonly: bool) -> int:
    return 1


def get_size(handle: int) -> int:
    return _given["bytes"]


def can_write(handle: int) -> bool:
    return False


def can_multi_conn(handle: int) -> bool:
    return True


def can_extents(handle: int) -> bool:
    return True


def pread(handle: int, buffer: bytearray, offset: int, flags: int) -> None:
    view = memoryview(buffer)
    for first, end, is_used in _stretches(offset, offset + len(view)):
        piece = view[first - offset : end - offset]
        if is_used:
            _read_whole(piece, first)
        else:
            piece[:] = bytes(len(piece))


def _read_whole(piece: memoryview, offset: int) -> None:
    while piece:
        count = os.preadv(_given["file"], [piece], offset)
        if not count:
            raise OSError(5, "the snapshot is shorter than it was")
        piece, offset = piece[count:], offset + count


def extents(handle: int, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    found = []
    for first, end, is_used in _stretches(offset, offset + count):
        found.append((first, end - first, 0 if is_used else _HOLE))
        if flags & nbdkit.FLAG_REQ_ONE or len(found) == _MOST_EXTENTS:
            break
    return found


def _stretches(first: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """(first, end, is used) of all between, in turn."""
    place = bisect_right(_borders, first)
    while first < end:
        stop = min(end, _borders[place]) if place < len(_borders) else end
        yield first, stop, place % 2 == 1
        first, place = stop, place + 1
