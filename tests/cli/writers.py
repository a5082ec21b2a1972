"""A process that writes to the live view, so that a write that waits keeps no test waiting."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PIECE_BYTES = 64 << 10
MIB = 1 << 20
# Kept until the interpreter ends: a process object that is dropped while its process runs is complained about.
_left: list[subprocess.Popen[Any]] = []
_SCRIPT = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY)
data = open(sys.argv[2], "rb").read()
piece_bytes = int(sys.argv[3])
try:
    for offset in range(0, len(data), piece_bytes):
        os.pwrite(fd, data[offset : offset + piece_bytes], offset)
        print(offset + piece_bytes, flush=True)
    os.fsync(fd)
    print("synced", flush=True)
except OSError as error:
    print("errno", error.errno, flush=True)
"""


class Writer:
    """Writes the content of a file over the beginning of another, piece by piece, and syncs it."""

    def __init__(self, target: Path, source: Path) -> None:
        command = [sys.executable, "-c", _SCRIPT, target, source, str(PIECE_BYTES)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def finish(self, timeout_s: float = 60.0) -> tuple[str, int]:
        """The last word, "synced" or "errno N", and how many bytes were acknowledged before it."""
        out, _ = self._process.communicate(timeout=timeout_s)
        lines = out.splitlines()
        counts = [int(line) for line in lines if line.isdecimal()]
        return lines[-1], max(counts, default=0)

    @property
    def is_over(self) -> bool:
        return self._process.poll() is not None

    def end(self) -> None:
        """Kill it; one whose pages wait for room cannot die before they have it, so it is not waited for."""
        self._process.kill()
        try:
            self._process.communicate(timeout=1.0)
        except subprocess.TimeoutExpired:
            _left.append(self._process)


@contextmanager
def writing(target: Path, source: Path) -> Iterator[Writer]:
    writer = Writer(target, source)
    try:
        yield writer
    finally:
        writer.end()


def write_all(target: Path, source: Path) -> tuple[str, int]:
    with writing(target, source) as writer:
        return writer.finish()


def random_file(path: Path, size_bytes: int) -> Path:
    path.write_bytes(os.urandom(size_bytes))
    return path


_READ_SCRIPT = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
sys.stdout.buffer.write(os.pread(fd, int(sys.argv[3]), int(sys.argv[2])))
sys.stdout.buffer.flush()
sys.stdin.read()
"""


@contextmanager
def reading(target: Path, offset: int, length: int) -> Iterator[bytes]:
    """What another process reads. It is not waited for: whoever closes a descriptor of the live file makes the
    kernel write out all that it holds of it, which may wait for room."""
    command = [sys.executable, "-c", _READ_SCRIPT, os.fspath(target), str(offset), str(length)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        yield process.stdout.read(length)
    _left.append(process)
