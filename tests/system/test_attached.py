"""A part of a file as a loop device that goes by itself."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.errors import SnapfsError
from snapfs.system.attached import attached
from snapfs.system.block_devices import loop_devices
from snapfs.system.block_ioctl import is_read_only

PIECE = 512


@pytest.fixture
def file_fd(tmp_path: Path) -> Iterator[int]:
    """Of a file with a byte of its own in each sector."""
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes([number]) * PIECE for number in range(16)))
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def is_attached(fd: int) -> bool:
    """Whether any loop device has the file: the number of one that is gone may be somebody else's at once."""
    name = os.readlink(f"/proc/self/fd/{fd}")
    return any(loop.backing_path == Path(name) for loop in loop_devices())


def test_it_shows_the_part_and_cannot_be_written(file_fd: int) -> None:
    with attached(file_fd, 3 * PIECE, 2 * PIECE) as device:
        assert device.read_bytes() == b"\3" * PIECE + b"\4" * PIECE
        with device.open("rb") as file:
            assert is_read_only(file.fileno())
    assert not is_attached(file_fd)


def test_it_is_there_as_long_as_somebody_has_it(file_fd: int) -> None:
    with attached(file_fd, 0, 16 * PIECE) as device:
        file = device.open("rb")
    assert is_attached(file_fd)
    file.close()
    assert not is_attached(file_fd)


def test_who_is_killed_leaves_none(file_fd: int) -> None:
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if not pid:
        with attached(file_fd, 0, 16 * PIECE) as device:
            os.write(write_fd, os.fsencode(device))
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.read(read_fd, 64).startswith(b"/dev/loop")
    os.waitpid(pid, 0)
    for fd in (read_fd, write_fd):
        os.close(fd)
    assert not is_attached(file_fd)


def test_what_is_no_file_has_none() -> None:
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(SnapfsError, match="No loop device can be made: Invalid argument; "), attached(fd, 0, PIECE):
        pass
    os.close(fd)
