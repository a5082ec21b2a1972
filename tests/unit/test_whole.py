"""What may do only a part is done again until all is done."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from snapfs.servers.pipe import READY, SERVED, failure_line, heard, sentence_of
from snapfs.whole import put_whole, read_at_most, read_whole, write_whole


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every system call does half of what it could."""
    preadv, pwrite, write = os.preadv, os.pwrite, os.write
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][: -(-len(views[0]) // 2)]], at))
    monkeypatch.setattr(os, "pwrite", lambda fd, view, at: pwrite(fd, view[: -(-len(view) // 2)], at))
    monkeypatch.setattr(os, "write", lambda fd, view: write(fd, view[: -(-len(view) // 2)]))


@pytest.mark.usefixtures("halves")
def test_all_is_read_and_written_whatever_one_call_does(tmp_path: Path) -> None:
    data = os.urandom(1001)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        write_whole(fd, memoryview(data), 7)
        put_whole(fd, memoryview(b"before."))
        found = bytearray(1008)
        read_whole(fd, memoryview(found), 0)
    finally:
        os.close(fd)
    assert found == b"before." + data


def test_a_file_that_ends_before_is_told_or_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"short")
    with (tmp_path / "file").open("rb") as file:
        assert read_at_most(file.fileno(), memoryview(bytearray(10)), 2) == 3
        with pytest.raises(OSError, match="too early"):
            read_whole(file.fileno(), memoryview(bytearray(10)), 2)


def test_a_line_that_comes_in_pieces_is_heard_whole() -> None:
    read_fd, write_fd = os.pipe()
    sentence = "x" * 200_000
    speaker = threading.Thread(target=put_whole, args=(write_fd, memoryview(READY + failure_line(sentence))))
    speaker.start()
    try:
        lines = heard(read_fd)
        while len(lines) < 2:
            lines += heard(read_fd)
        speaker.join()
        os.close(write_fd)
        assert (lines[0], sentence_of(lines[1])) == (READY, sentence)
        assert heard(read_fd) == []
    finally:
        os.close(read_fd)
    assert SERVED not in lines
