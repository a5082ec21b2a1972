"""The writer of a stripe: `stripe_writer.py PROGRESS FILE...`, one write after the other, each durable, until killed.

Its progress is of one writer: `tried` is stored before a write and `done` after it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import time
from pathlib import Path

from cuts_content import Progress
from stripe_content import BLOCK, block, place

_PAUSE_S = 0.0005


def main(words: list[str]) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    progress = Progress(Path(words[0]), 1)
    fds = [os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_DSYNC | os.O_CLOEXEC) for path in words[1:]]
    # A page of its own: what goes past the page cache must begin at one.
    buffer = mmap.mmap(-1, BLOCK)
    number = 0
    while True:
        number += 1
        buffer[:] = block(number)
        image, offset = place(number, len(fds))
        progress.tried[0] = number
        if os.pwrite(fds[image], buffer, offset) != BLOCK:
            raise OSError(f"write {number} was not written whole")
        progress.done[0] = number
        time.sleep(_PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1:])
