"""A header that was renamed in quickly is made durable afterwards."""

from __future__ import annotations

import os
from pathlib import Path

from cow.disk.files import Files
from cow.disk.header import HEADER_NAME, flush_header


class Watched(Files):
    """Notes what was flushed, by name."""

    def __init__(self) -> None:
        self.flushed: list[str] = []

    def sync(self, fd: int) -> None:
        self.flushed.append(os.readlink(f"/proc/self/fd/{fd}"))


def test_first_the_header_then_its_name(tmp_path: Path) -> None:
    (tmp_path / HEADER_NAME).write_bytes(b"header")
    files = Watched()
    flush_header(tmp_path, files)
    assert files.flushed == [str(tmp_path / HEADER_NAME), str(tmp_path)]
