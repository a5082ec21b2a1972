"""A stripe over several images, as of LVM: one write after the other goes to one image after the other, each durable.

Each image has its part of it in its first MiB. A write fills a block with its number, so what is there tells which
writes are: all up to some number, or the images are not of one instant (`last_write`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import numpy as np

BLOCK: Final = 4096
BLOCKS: Final = 256
STRIPE_BYTES: Final = BLOCK * BLOCKS
_NUMBER: Final = np.dtype("<u8")


def place(number: int, images: int) -> tuple[int, int]:
    """The image, and the offset in it, of the write with this number, from 1 on."""
    turn, image = divmod(number - 1, images)
    return image, turn % BLOCKS * BLOCK


def block(number: int) -> bytes:
    return np.full(BLOCK // _NUMBER.itemsize, number, _NUMBER).tobytes()


def read_part(path: Path) -> bytes:
    """What this image, or a snapshot of it, has of the stripe."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, STRIPE_BYTES, 0)
    finally:
        os.close(fd)


def last_write(parts: list[bytes]) -> int:
    """Of all parts. AssertionError: a block is torn, or a write is missing that was before that one."""
    found = [_numbers(part) for part in parts]
    last = max(int(part.max()) for part in found)
    due = [np.zeros(BLOCKS, np.uint64) for _ in parts]
    for number in range(max(1, last - BLOCKS * len(parts) + 1), last + 1):
        image, offset = place(number, len(parts))
        due[image][offset // BLOCK] = number
    for image, (one, wanted) in enumerate(zip(found, due, strict=True)):
        wrong = np.flatnonzero(one != wanted)
        assert not len(wrong), (
            f"with write {last} of the stripe, block {int(wrong[0])} of image {image} has write "
            f"{int(one[wrong[0]])}, where {int(wanted[wrong[0]])} was before"
        )
    return last


def _numbers(part: bytes) -> Any:
    rows = np.frombuffer(part, _NUMBER).reshape(BLOCKS, -1)
    torn = np.flatnonzero((rows != rows[:, :1]).any(axis=1))
    assert not len(torn), f"block {int(torn[0])} of the stripe is torn"
    return rows[:, 0]
