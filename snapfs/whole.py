"""System calls that may do only a part of what they are asked for, again and again until all is done.

The kernel transfers at most 2 GiB - 4 KiB by one call, a pipe what fits into it, a disk what it had room for.
"""

from __future__ import annotations

import errno
import os


def read_at_most(fd: int, view: memoryview, offset: int) -> int:
    """Fill `view` from `offset`; how many bytes there were, fewer only when the file ends before."""
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], offset + done)
        if not count:
            break
        done += count
    return done


def read_whole(fd: int, view: memoryview, offset: int) -> None:
    """Fill `view` from `offset`; OSError(EIO) when the file ends before."""
    if read_at_most(fd, view, offset) < len(view):
        raise OSError(errno.EIO, "it ends too early")


def write_whole(fd: int, view: memoryview, offset: int) -> None:
    """All of `view` at `offset`."""
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def put_whole(fd: int, view: memoryview) -> None:
    """All of `view` where the file or pipe stands."""
    while view:
        view = view[os.write(fd, view) :]
