"""Many processes that create, rename, sync and delete files in a directory, until they are killed.

`write_load.py DIRECTORY RECORD PROCESSES`: each line of RECORD names a file that was written and fsynced and
that is never touched again. Its content follows from its name.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import random
import signal
import sys
from pathlib import Path


def content_of(name: str) -> bytes:
    source = random.Random(name)
    return source.randbytes(source.randrange(1, 6_000))


def main(directory: Path, record: Path, processes: int) -> None:
    parent = os.getpid()
    for worker_no in range(processes):
        if not os.fork():
            ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(0)
            work(directory, record, worker_no)
    signal.pause()


def work(directory: Path, record: Path, worker_no: int) -> None:
    own = directory / f"worker-{worker_no}"
    own.mkdir()
    record_fd = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    big_fd = os.open(own / "big", os.O_RDWR | os.O_CREAT)
    for round_no in itertools.count():
        os.pwrite(big_fd, os.urandom(65536), round_no % 64 * 65536)
        passing = own / f"passing-{round_no}"
        passing.write_bytes(b"x" * (round_no % 9000))
        passing.rename(own / f"renamed-{round_no % 50}")
        if round_no % 5 == 0:
            keep(own, f"{worker_no}-{round_no}", record_fd)
        if round_no % 7 == 0:
            (own / f"renamed-{round_no % 50}").unlink()


def keep(own: Path, name: str, record_fd: int) -> None:
    fd = os.open(own / "being-written", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(fd, content_of(name))
    os.rename(own / "being-written", own / f"kept-{name}")
    os.fsync(fd)
    os.close(fd)
    directory_fd = os.open(own, os.O_RDONLY)
    os.fsync(directory_fd)
    os.close(directory_fd)
    os.write(record_fd, f"{own.name}/kept-{name} {name}\n".encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
