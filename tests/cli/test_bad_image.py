"""Images that cannot be mounted: said in one sentence, and nothing is left behind."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from command_line import NOBODY, Bench, Room, loop_device, mounted, run, snapfs, wait_until


def test_an_image_that_does_not_exist(bench: Bench) -> None:
    bench.image.unlink()
    with bench.untouched():
        bench.mount().refuses(1, f"{bench.image} does not exist")


def test_an_image_below_a_file(bench: Bench) -> None:
    with bench.untouched():
        snapfs("mount", bench.image / "x", bench.live, bench.snap).refuses(1, "does not exist")


def test_a_directory_as_image(bench: Bench) -> None:
    bench.image.unlink()
    bench.image.mkdir()
    with bench.untouched():
        bench.mount().refuses(1, f"{bench.image} is a directory")


def test_an_empty_image(bench: Bench) -> None:
    bench.image.write_bytes(b"")
    with bench.untouched():
        bench.mount().refuses(1, f"{bench.image} is empty")


def test_a_socket_as_image(bench: Bench) -> None:
    bench.image.unlink()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(bench.image))
        with bench.untouched():
            bench.mount().refuses(1, f"{bench.image} is a socket")


def test_an_image_that_may_not_be_read(user_bench: Bench, room: Room) -> None:
    os.chown(user_bench.image, 0, 0)
    user_bench.image.chmod(0o600)
    with user_bench.untouched():
        user_bench.mount(before=room.before(NOBODY)).refuses(1, f"{user_bench.image} cannot be read by this user")


def test_an_image_that_may_not_be_written(user_bench: Bench, room: Room) -> None:
    os.chown(user_bench.image, 0, 0)
    with user_bench.untouched():
        user_bench.mount(before=room.before(NOBODY)).refuses(1, "cannot be written to by this user")


def test_an_image_on_a_read_only_filesystem(bench: Bench) -> None:
    inner = bench.path / "inner.img"
    run("mkfs.ext4", "-q", "-d", bench.live, inner, "2M")
    with mounted(inner, bench.path / "inner", "-o", "loop") as point:
        (point / "disk.img").write_bytes(bytes(4096))
        run("mount", "-o", "remount,ro", point)
        with bench.untouched():
            done = snapfs("mount", point / "disk.img", bench.live, bench.snap, "--store", bench.store)
            done.refuses(1, f"{point / 'disk.img'} is read-only")


def test_an_image_that_is_a_dangling_link(bench: Bench) -> None:
    bench.image.unlink()
    bench.image.symlink_to(bench.path / "nowhere")
    with bench.untouched():
        bench.mount().refuses(1, f"{bench.path / 'nowhere'} does not exist")


# --- in use --------------------------------------------------------------------------------------------------


def test_an_image_that_another_snapfs_has(bench: Bench) -> None:
    others = bench.path / "live2", bench.path / "snap2"
    for other in others:
        other.mkdir()
    with bench.mounted():
        done = snapfs("mount", bench.image, *others, "--store", bench.store)
        done.refuses(1, "in use: snapfs shows it on", str(bench.live), str(bench.snap))
        assert not bench.store.exists()


def test_the_same_mount_twice(bench: Bench) -> None:
    with bench.mounted(), bench.untouched(running=True):
        bench.mount().refuses(1, f"{bench.live} is already a mount")


def test_a_store_that_another_snapfs_has(bench: Bench) -> None:
    other = bench.path / "other.img"
    other.write_bytes(os.urandom(4096))
    points = bench.path / "live2", bench.path / "snap2"
    for point in points:
        point.mkdir()
    with bench.mounted("--store", bench.store), bench.untouched(running=True):
        done = snapfs("mount", other, *points, "--store", bench.store)
        done.refuses(1, f"{bench.store}", "in use by", "unmount that one first")


def test_an_image_with_a_loop_device(bench: Bench) -> None:
    with loop_device(bench.image) as device, bench.untouched():
        bench.mount().refuses(1, f"in use: loop device {device}")


def test_an_image_that_is_mounted(bench: Bench) -> None:
    bench.image.unlink()
    run("mkfs.ext4", "-q", bench.image, "4M")
    # Read-only, for a mounted filesystem writes to its image now and then.
    with mounted(bench.image, bench.path / "inner", "-o", "loop,ro") as point, bench.untouched():
        bench.mount().refuses(1, "in use", f"mounted on {point}")


def test_a_block_device_that_is_mounted(bench: Bench) -> None:
    inner = bench.path / "inner.img"
    run("mkfs.ext4", "-q", inner, "4M")
    with loop_device(inner) as device, mounted(device, bench.path / "inner") as point, bench.untouched():
        done = snapfs("mount", device, bench.live, bench.snap, "--store", bench.store)
        done.refuses(1, f"{device} is in use", f"mounted on {point}")


@contextmanager
def qemu_io(bench: Bench) -> Iterator[int]:
    """qemu-io with the image open for writing."""
    process = subprocess.Popen(
        ["qemu-io", "-f", "raw", bench.image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"length\n")
        process.stdout.readline()
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def test_an_image_that_qemu_writes_to(bench: Bench) -> None:
    with qemu_io(bench) as pid, bench.untouched():
        bench.mount().refuses(1, "in use", f"process {pid} (qemu-io) has locked it")


def test_an_image_that_qemu_exports(bench: Bench) -> None:
    socket_path, pid_file = bench.path / "nbd.socket", bench.path / "nbd.pid"
    command = ["qemu-nbd", "-f", "raw", "-k", socket_path, "--pid-file", pid_file, bench.image]
    process = subprocess.Popen(command)
    try:
        wait_until(pid_file.exists)
        with bench.untouched():
            bench.mount().refuses(1, "in use", "(qemu-nbd) has locked it")
    finally:
        process.terminate()
        process.wait()


def test_qemu_refuses_an_image_that_snapfs_has(bench: Bench) -> None:
    with bench.mounted():
        done = subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "length", bench.image], capture_output=True, text=True, timeout=30
        )
        assert "lock" in done.stderr


def test_an_image_that_somebody_has_locked(bench: Bench) -> None:
    with bench.image.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with bench.untouched():
            bench.mount().refuses(1, "in use", f"process {os.getpid()}")


# --- changed since -------------------------------------------------------------------------------------------


def keep_store(bench: Bench) -> None:
    with bench.mounted("--store", bench.store), bench.live_file.open("r+b") as file:
        file.write(b"changed through the live view")


def test_an_image_written_to_since_the_store_was_kept(bench: Bench) -> None:
    keep_store(bench)
    with bench.image.open("r+b") as file:
        file.write(b"changed behind its back")
    with bench.untouched():
        done = bench.mount("--store", bench.store)
        done.refuses(1, f"{bench.store}", "changed by something else", "give another --store, or remove it")


@pytest.mark.parametrize("size_bytes", [(1 << 20) - 4096, (1 << 20) + 1])
def test_an_image_of_another_size_than_the_store_says(bench: Bench, size_bytes: int) -> None:
    keep_store(bench)
    os.truncate(bench.image, size_bytes)
    with bench.untouched():
        bench.mount("--store", bench.store).refuses(1, "changed by something else")


def test_an_image_replaced_by_a_copy(bench: Bench) -> None:
    keep_store(bench)
    run("cp", "-a", bench.image, bench.path / "copy")
    run("mv", bench.path / "copy", bench.image)
    with bench.untouched():
        bench.mount("--store", bench.store).refuses(1, "belongs to another image")
