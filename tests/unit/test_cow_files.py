"""Small files are written whole: old bytes or new ones, nothing half, nothing left over, no link written through."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from cow.disk.files import Files


class Refusing(Files):
    """Writes half, then the disk is full."""

    def pwrite(self, fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        os.pwrite(fd, data[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_small_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "facts"
    Files().write_whole(path, b"old and longer")
    Files().write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["facts"]


def test_a_small_file_has_the_permissions_asked_for_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        Files().write_whole(tmp_path / "private", b"1")
        Files().write_whole(tmp_path / "public", b"1", mode=0o644)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("private", "public")]
    assert modes == [0o600, 0o644]


def test_a_write_that_fails_leaves_the_old_bytes_and_no_other_name(tmp_path: Path) -> None:
    path = tmp_path / "facts"
    Files().write_whole(path, b"old")
    with pytest.raises(OSError, match="No space"):
        Refusing().write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["facts"]


def test_what_a_killed_process_left_does_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "facts.new").write_bytes(b"half")
    Files().write_whole(tmp_path / "facts", b"new")
    assert (tmp_path / "facts").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["facts"]


def test_a_link_under_the_temporary_name_is_not_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "facts.new").symlink_to(victim)
    Files().write_whole(tmp_path / "facts", b"new")
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "facts").is_symlink()
