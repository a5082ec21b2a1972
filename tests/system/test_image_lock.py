"""The lock on the image, against real QEMU tools and against another snapfs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from real_system import NOBODY, in_child, loop_device, wait_until

from snapfs.errors import BusyError
from snapfs.system.image_lock import lock_holders, lock_image


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(1 << 20))
    return path


@contextmanager
def opened(image: Path) -> Iterator[int]:
    fd = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def qemu_io(image: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """qemu-io with the image open, until the end of the block."""
    with subprocess.Popen(
        ["qemu-io", "-f", "raw", *options, image],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        wait_until(lambda: process.poll() is not None or _has_open(process.pid, image))
        try:
            assert process.stdin is not None
            process.stdin.write("length\n")
            process.stdin.flush()
            assert process.stdout is not None
            assert "1 MiB" in process.stdout.readline()
            yield process
        finally:
            process.communicate("quit\n", timeout=10)


def _has_open(pid: int, image: Path) -> bool:
    try:
        return any(os.readlink(link) == str(image) for link in Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:  # it closed one, or ended, between the two looks
        return False


def qemu_writes(image: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "write 0 4k", image], capture_output=True, text=True, check=False
    )


def qemu_copies(image: Path, *options: str) -> subprocess.CompletedProcess[str]:
    copy = ["qemu-img", "convert", *options, "-f", "raw", "-O", "raw", str(image), f"{image}.copy"]
    return subprocess.run(copy, capture_output=True, text=True, check=False)


def test_qemu_refuses_to_write_while_snapfs_has_the_image(image: Path) -> None:
    with opened(image) as fd:
        lock_image(fd)
        done = qemu_writes(image)
    assert done.returncode != 0
    assert 'Failed to get "write" lock' in done.stderr
    assert image.read_bytes() == bytes(1 << 20)


def test_qemu_copies_the_image_only_when_told_to_share(image: Path) -> None:
    with opened(image) as fd:
        lock_image(fd)
        done = qemu_copies(image)
        shared = qemu_copies(image, "-U")
    assert 'Failed to get shared "write" lock' in done.stderr
    assert shared.returncode == 0, shared.stderr


def test_qemu_writes_again_when_snapfs_has_closed_the_image(image: Path) -> None:
    with opened(image) as fd:
        lock_image(fd)
    done = qemu_writes(image)
    assert done.returncode == 0, done.stderr


def test_the_lock_lives_on_in_a_child_that_has_the_descriptor(image: Path) -> None:
    with opened(image) as fd:
        lock_image(fd)
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[fd])
    try:
        assert qemu_writes(image).returncode != 0
    finally:
        child.communicate()


def test_an_image_that_qemu_has_open_is_busy_and_qemu_is_named(image: Path) -> None:
    with (
        qemu_io(image) as process,
        opened(image) as fd,
        pytest.raises(BusyError, match=rf"process {process.pid} \(qemu-io\) has locked it"),
    ):
        lock_image(fd)


@pytest.mark.parametrize("options", [["-r"], ["-r", "-U"]])
def test_a_qemu_that_only_reads_is_no_obstacle(image: Path, options: list[str]) -> None:
    with qemu_io(image, *options), opened(image) as fd:
        lock_image(fd)
        assert lock_holders(fd) == []


def test_a_refused_lock_leaves_nothing_locked(image: Path) -> None:
    with opened(image) as fd:
        with qemu_io(image), pytest.raises(BusyError):
            lock_image(fd)
        assert qemu_writes(image).returncode == 0


def test_a_second_snapfs_is_refused_and_the_first_named(image: Path) -> None:
    with opened(image) as first_fd, opened(image) as second_fd:
        lock_image(first_fd)

        def second() -> None:
            os.close(first_fd)
            lock_image(second_fd)

        with pytest.raises(BusyError, match=rf"process {os.getpid()} \(.+\) has locked it") as caught:
            in_child(second)
        assert caught.value.path == image


def test_the_other_user_who_has_the_lock_cannot_be_named_but_is_noticed(open_dir: Path) -> None:
    image = open_dir / "disk.img"
    image.write_bytes(bytes(4096))
    image.chmod(0o666)

    def as_user() -> None:
        os.close(fd)
        lock_image(os.open(image, os.O_RDWR))

    with opened(image) as fd:
        lock_image(fd)
        with pytest.raises(BusyError, match="a process of another user has locked it"):
            in_child(as_user, user=NOBODY)


def test_our_own_lock_is_not_somebody_elses(image: Path) -> None:
    with opened(image) as fd, opened(image) as other_fd:
        lock_image(fd)
        assert lock_holders(fd) == []
        assert lock_holders(other_fd) == []


def test_a_block_device_is_locked_against_qemu_too(image: Path) -> None:
    with loop_device(image) as device, opened(device) as fd:
        lock_image(fd)
        assert qemu_writes(device).returncode != 0
