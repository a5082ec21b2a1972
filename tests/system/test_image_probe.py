"""Opening IMAGE: what is one, and one clear sentence for everything that is not."""

from __future__ import annotations

import os
import re
import socket
from contextlib import closing
from pathlib import Path

import pytest
from real_system import NOBODY, in_child, loop_device, mounted, run

from snapfs.errors import BusyError, PermissionDeniedError, SnapfsError
from snapfs.system.image_probe import OpenImage, check_image_unused, open_image


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(10_000))
    return path


@pytest.fixture
def point(tmp_path: Path) -> Path:
    path = tmp_path / "point"
    path.mkdir()
    return path


def refusal(path: Path, user: int | None = None) -> str:
    """The sentence of the refusal; whatever it is, it names the path and is one line."""

    def attempt() -> str:
        try:
            opened = open_image(path)
        except SnapfsError as error:
            return f"{type(error).__name__}: {error}" if error.path == path else "not about this path"
        os.close(opened.fd)
        return "opened"

    sentence = str(attempt() if user is None else in_child(attempt, user=user))
    assert str(path) in sentence
    assert re.fullmatch(r"\w+: [^\n]+; [^\n]+\.", sentence)
    return sentence


def test_a_file_is_opened_for_reading_and_writing(image: Path) -> None:
    opened = open_image(image)
    try:
        assert opened == OpenImage(opened.fd, 10_000, False)
        os.pwrite(opened.fd, b"x", 9_999)
    finally:
        os.close(opened.fd)
    assert image.stat().st_size == 10_000


def test_a_block_device_has_the_size_of_the_device(small_ext4: Path) -> None:
    with loop_device(small_ext4) as device:
        opened = open_image(device)
        os.close(opened.fd)
        assert opened == OpenImage(opened.fd, 8 << 20, True)


def test_an_open_block_device_cannot_be_mounted(small_ext4: Path, point: Path) -> None:
    with loop_device(small_ext4) as device:
        opened = open_image(device)
        try:
            with pytest.raises(Exception, match="mount"), mounted(device, point):
                pass
        finally:
            os.close(opened.fd)


def test_a_mounted_block_device_is_busy_and_its_mount_named(small_ext4: Path, point: Path) -> None:
    with (
        loop_device(small_ext4) as device,
        mounted(device, point),
        pytest.raises(BusyError, match=f"{device} is in use: it is mounted on {point};") as caught,
    ):
        open_image(device)
    assert caught.value.holders == (f"it is mounted on {point}",)


def test_an_unused_image_may_be_taken(image: Path) -> None:
    check_image_unused(image)


def test_an_image_with_a_loop_device_may_not_be_taken(image: Path) -> None:
    with (
        loop_device(image) as device,
        pytest.raises(BusyError, match=f"is in use: loop device {device}; ") as caught,
    ):
        check_image_unused(image)
    assert caught.value.holders == (f"loop device {device}",)


def test_an_image_that_is_swapped_to_may_not_be_taken(tmp_path: Path) -> None:
    path = tmp_path / "swap"
    path.write_bytes(bytes(1 << 20))
    path.chmod(0o600)
    run("mkswap", path)
    run("swapon", path)
    try:
        with pytest.raises(BusyError, match="it is used as swap"):
            check_image_unused(path)
    finally:
        run("swapoff", path)


def test_a_missing_image_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "missing.img")


def test_an_image_below_a_file_is_refused(image: Path) -> None:
    assert "does not exist" in refusal(image / "disk.img")


def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    assert "does not exist" in refusal(tmp_path / "link")


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "is a directory, not an image" in refusal(tmp_path)


def test_a_fifo_is_refused_without_waiting_for_its_other_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "is a FIFO, not an image" in refusal(tmp_path / "fifo")


def test_a_socket_is_refused(tmp_path: Path) -> None:
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(tmp_path / "socket"))
        assert "is a socket, not an image" in refusal(tmp_path / "socket")


def test_a_character_device_is_refused() -> None:
    assert "is a character device, not an image" in refusal(Path("/dev/null"))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert "is empty" in refusal(tmp_path / "empty")


def test_a_loop_device_without_a_file_is_refused(tmp_path: Path) -> None:
    with loop_device(tmp_path_image(tmp_path)) as device:
        pass
    assert "is empty" in refusal(device)


def tmp_path_image(directory: Path) -> Path:
    path = directory / "backing"
    path.write_bytes(bytes(4096))
    return path


def test_an_unreadable_image_is_refused(open_dir: Path) -> None:
    path = open_dir / "disk.img"
    path.write_bytes(b"x")
    path.chmod(0o200)
    sentence = refusal(path, user=NOBODY)
    assert sentence.startswith(PermissionDeniedError.__name__)
    assert "cannot be read by this user" in sentence


def test_an_image_that_may_only_be_read_is_refused(open_dir: Path) -> None:
    path = open_dir / "disk.img"
    path.write_bytes(b"x")
    path.chmod(0o644)
    assert "cannot be written to by this user" in refusal(path, user=NOBODY)


def test_an_image_in_a_directory_that_may_not_be_entered_is_refused(open_dir: Path) -> None:
    path = open_dir / "disk.img"
    path.write_bytes(b"x")
    open_dir.chmod(0o700)
    assert "cannot be read by this user" in refusal(path, user=NOBODY)


def test_an_image_on_a_read_only_filesystem_is_refused(point: Path) -> None:
    with mounted("tmpfs", point, "-t", "tmpfs"):
        (point / "disk.img").write_bytes(b"x")
        run("mount", "-o", "remount,ro", point)
        assert "is read-only" in refusal(point / "disk.img")


def test_a_read_only_loop_device_is_refused(small_ext4: Path) -> None:
    with loop_device(small_ext4, "--read-only") as device:
        assert "read-only" in refusal(device)


def test_an_immutable_image_is_refused(image: Path) -> None:
    run("chattr", "+i", image)
    try:
        assert "cannot be written to" in refusal(image)
    finally:
        run("chattr", "-i", image)


def test_a_refused_image_leaves_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    before = len(os.listdir("/proc/self/fd"))
    refusal(tmp_path / "empty")
    assert len(os.listdir("/proc/self/fd")) == before
