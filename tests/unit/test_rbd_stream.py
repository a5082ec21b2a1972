"""The diffs of rbd that are written and read."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import pytest

from snapfs.errors import BackupDamagedError
from snapfs.rbd.stream import DiffTarget, read_diff

CELL = 64 << 10
HEADER = b"rbd diff v1\n"
SIZE = b"s" + struct.pack("<Q", 1 << 20)


class Collected:
    """An image as it comes out of a diff."""

    def __init__(self) -> None:
        self.image, self.zeros = bytearray(b"?" * (1 << 20)), []

    def write(self, view: memoryview, offset: int) -> None:
        self.image[offset : offset + len(view)] = view

    def write_zeros(self, offset: int, length: int) -> None:
        self.image[offset : offset + length] = bytes(length)
        self.zeros.append((offset, length))

    def take(self, data: bytes) -> int:
        return read_diff(io.BytesIO(data).read, self.write, self.write_zeros)


def written(path: Path, since: str | None, content: bytes, offset: int) -> bytes:
    with path.open("wb") as file:
        target = DiffTarget(file.fileno(), "rbd", 1 << 20, since, "until")
        target.write(memoryview(content), offset)
        target.finish()
        target.close()
    return path.read_bytes()


def test_an_increment_begins_at_its_snapshot_and_tells_zeros(tmp_path: Path) -> None:
    content = os.urandom(CELL) + bytes(CELL) + os.urandom(100)
    diff = written(tmp_path / "diff", "since", content, CELL)
    assert diff.startswith(HEADER + b"f\5\0\0\0sincet\5\0\0\0until" + SIZE)
    collected = Collected()
    assert collected.take(diff) == 1 << 20
    assert bytes(collected.image) == b"?" * CELL + content + b"?" * ((1 << 20) - CELL - len(content))
    assert collected.zeros == [(2 * CELL, CELL)]


def test_a_full_one_tells_of_no_zeros(tmp_path: Path) -> None:
    collected = Collected()
    diff = written(tmp_path / "diff", None, bytes(CELL) + os.urandom(CELL), 0)
    assert diff.startswith(HEADER + b"t\5\0\0\0until" + SIZE)
    collected.take(diff)
    assert collected.zeros == []
    assert bytes(collected.image[:CELL]) == b"?" * CELL


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"rbd diff v2\n" + SIZE + b"e",
        HEADER + SIZE,
        HEADER + SIZE + b"w" + struct.pack("<QQ", 0, 10) + b"short",
        HEADER + SIZE + b"z" + struct.pack("<QQ", 1 << 20, 1) + b"e",
        HEADER + SIZE + b"z" + struct.pack("<QQ", 0, 0) + b"e",
        HEADER + SIZE + b"w" + struct.pack("<QQ", 0, 1 << 63) + b"e",
        HEADER + b"z" + struct.pack("<QQ", 0, 1) + b"e",
        HEADER + b"f\xff\xff\xff\xff",
        HEADER + SIZE + b"xe",
    ],
)
def test_what_is_no_whole_diff_is_refused(data: bytes) -> None:
    with pytest.raises(BackupDamagedError):
        Collected().take(data)
