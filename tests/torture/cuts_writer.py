"""One writer of the campaign of cuts: `cuts_writer.py FILE PROGRESS SEED WRITERS WRITER PAUSE_S`.

It does its writes in order, one after the other, until it is killed: past the page cache, or (see `is_buffered`)
through it with a sync now and then. At its limit it syncs and waits.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from cuts_content import BLOCK, MAX_LENGTH, Progress, Sequence, contents, is_buffered, sequences

_SYNC_EVERY = 50
_LOOK_S = 0.002


def write_on(path: Path, progress: Progress, sequence: Sequence, pause_s: float) -> None:
    writer, number = sequence.writer, 0
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (0 if is_buffered(writer) else os.O_DIRECT))
    # Pages of its own: what goes past the page cache must begin at one.
    buffer = mmap.mmap(-1, MAX_LENGTH * BLOCK)
    while True:
        if number >= progress.limit[writer]:
            os.fsync(fd)
            progress.done[writer], progress.rests[writer] = number, 1
            while number >= progress.limit[writer]:
                time.sleep(_LOOK_S)
            progress.rests[writer] = 0
        number += 1
        first, end = sequence.place(number)
        data = contents(writer, np.full(end - first, number), np.arange(first, end)).tobytes()
        buffer[: len(data)] = data
        progress.tried[writer] = number
        written = os.pwrite(fd, memoryview(buffer)[: len(data)], first * BLOCK)
        if written != len(data):
            raise OSError(f"write {number} of writer {writer} wrote {written} bytes of {len(data)}")
        # Of one at its limit nothing is done before it is synced.
        if number < progress.limit[writer]:
            progress.done[writer] = number
        if is_buffered(writer) and number % _SYNC_EVERY == 0:
            os.fsync(fd)
        time.sleep(pause_s)


def main(words: list[str]) -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    path, progress, seed, writer_count, writer, pause_s = words
    own = sequences(int(seed), int(writer_count), os.stat(path).st_size // BLOCK)[int(writer)]
    write_on(Path(path), Progress(Path(progress), int(writer_count)), own, float(pause_s))


if __name__ == "__main__":
    main(sys.argv[1:])
