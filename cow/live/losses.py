"""Lost blocks: what the image itself could not give when it was to be preserved.

A live write never fails because an old block is unreadable (unless the policy is `break-write`): the block is lost
to the snapshot, alone, and the write goes on. Its index entry becomes LOST_ENTRY, then it is settled, then the image
is written; a read of it is an error for ever. With durability `power` a record without content says the same, and
is flushed first: after a power loss the block would pass for owed, and its new content for the old one.

What then turns out to be free, or is released, is counted no more: nobody is going to miss it.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator

from cow.disk.cut import Cut
from cow.disk.image import Image
from cow.disk.layout import LOST_ENTRY
from cow.geometry import Geometry

Runs = list[tuple[int, int]]


def read_or_lose(
    image: Image,
    geometry: Geometry,
    run: tuple[int, int],
    views: Callable[[int, int], list[memoryview]],
    may_lose: Callable[[], bool],
) -> tuple[Runs, int]:
    """Read the blocks of `run` into `views(first, end)`; the runs of those among them that cannot be read, and
    with which errno (0: all were).

    OSError: the image's, unless `may_lose`; EFAULT when it is the memory of the views that cannot be had.
    """
    first, end = run
    try:
        image.read_into(views(first, end), geometry.extent(first, end)[0])
    except OSError as error:
        if error.errno == errno.EFAULT or not may_lose():
            raise
        # The error stands for all that was asked for at once, also for what the kernel read ahead.
        lost = joined(block for block in range(first, end) if not _can_read(image, geometry, block, views))
        return lost, error.errno or errno.EIO
    return [], 0


def _can_read(image: Image, geometry: Geometry, block_no: int, views: Callable[[int, int], list[memoryview]]) -> bool:
    try:
        image.read_into(views(block_no, block_no + 1), geometry.extent(block_no, block_no + 1)[0])
    except OSError as error:
        if error.errno == errno.EFAULT:
            raise
        return False
    return True


def joined(blocks: Iterable[int]) -> Runs:
    """Runs of the ascending `blocks`."""
    runs: Runs = []
    for block_no in blocks:
        if runs and runs[-1][1] == block_no:
            runs[-1] = (runs[-1][0], block_no + 1)
        else:
            runs.append((block_no, block_no + 1))
    return runs


def without(run: tuple[int, int], lost: Runs) -> Iterator[tuple[int, int]]:
    """What is left of `run` between the `lost` runs in it."""
    first, end = run
    for low, high in lost:
        if first < low:
            yield first, low
        first = high
    if first < end:
        yield first, end


def mark_lost(cut: Cut, lost: Iterable[tuple[int, int]]) -> None:
    """Say so in the index, which was allocated there."""
    for first, end in lost:
        cut.index.set_stored(first, end, LOST_ENTRY)
