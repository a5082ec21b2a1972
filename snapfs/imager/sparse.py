"""Zeros: finding them cheaply, and making holes of them."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator

import numpy as np
from bitarray import bitarray
from bitarray.util import zeros

from cow import Image
from snapfs.imager.extents import CELL_BYTES, cell_count
from snapfs.whole import write_whole

_PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01
_ZERO_RANGE_KEEP_SIZE = 0x10 | 0x01
_NO_HOLES = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)
_ZERO_BYTES = bytes(1 << 20)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


def data_runs(view: memoryview) -> Iterator[tuple[int, int]]:
    """(start, stop) of the stretches of `view` that are not zero, in whole cells.

    One word of each cell tells nearly always, so data cost next to nothing here.
    """
    whole = len(view) // CELL_BYTES
    words = np.frombuffer(view, np.uint64, whole * CELL_BYTES // 8).reshape(whole, CELL_BYTES // 8)
    holds = words[:, 0] != 0
    for index in np.flatnonzero(~holds).tolist():
        holds[index] = words[index].any()
    is_data = [*holds.tolist(), *([True] if len(view) % CELL_BYTES else []), False]
    start = None
    for index, data in enumerate(is_data):
        if data and start is None:
            start = index
        elif not data and start is not None:
            yield start * CELL_BYTES, min(index * CELL_BYTES, len(view))
            start = None


def hole_cells(image: Image) -> bitarray:
    """One bit per cell of an image: whether all of it lies in a hole; none where nobody can tell."""
    cells = zeros(cell_count(image.size_bytes), "little")
    for start, end in image.holes(0, image.size_bytes):
        first, last = -(-start // CELL_BYTES), len(cells) if end == image.size_bytes else end // CELL_BYTES
        if first < last:
            cells[first:last] = 1
    return cells


def make_zeros(fd: int, offset: int, length: int) -> None:
    """Zeros, as a hole where the file or device can have one; written out where it cannot."""
    for mode in (_PUNCH_HOLE_KEEP_SIZE, _ZERO_RANGE_KEEP_SIZE):
        if _libc.fallocate(fd, mode, offset, length) == 0:
            return
        code = ctypes.get_errno()
        if code not in _NO_HOLES:
            raise OSError(code, os.strerror(code))
    view = memoryview(_ZERO_BYTES)
    for at in range(offset, offset + length, len(view)):
        write_whole(fd, view[: offset + length - at], at)
