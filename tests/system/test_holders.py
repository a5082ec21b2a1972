"""Who uses a mounted filesystem or an image: real loop devices, partitions, mounts, processes and locks."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from real_system import (
    in_child,
    loop_device,
    map_file_without_descriptor,
    mounted,
    run,
    silent_fuse_mount,
    wait_until,
)

from snapfs.system import block_devices
from snapfs.system.holders import Holder, describe, holders_of_image, holders_of_mount
from snapfs.system.mounts import Mount, find_mount


@pytest.fixture
def fs(tmp_path: Path) -> Iterator[Path]:
    """A mounted filesystem that stands for the live view."""
    point = tmp_path / "live"
    point.mkdir()
    with mounted("tmpfs", point, "-t", "tmpfs"):
        yield point


@pytest.fixture
def other_dir(tmp_path: Path) -> Path:
    path = tmp_path / "other"
    path.mkdir()
    return path


def mount_at(path: Path) -> Mount:
    mount = find_mount(path)
    assert mount is not None
    return mount


def ext4_file(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(8 << 20)
    run("mkfs.ext4", "-q", path)
    return path


def descriptions(holders: list[Holder]) -> list[str]:
    return [holder.description for holder in holders]


@contextmanager
def waiting_child(before: str, cwd: Path | None = None) -> Iterator[int]:
    """A shell that has run `before` and waits."""
    command = ["sh", "-c", f"{before}; echo ready; read -r _"]
    with subprocess.Popen(command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process.pid
        finally:
            process.communicate(b"\n")


def test_an_unused_mount_has_no_holders(fs: Path) -> None:
    assert holders_of_mount(mount_at(fs)) == []


def test_a_process_with_an_open_file_holds_the_mount(fs: Path) -> None:
    with waiting_child(f"exec 3>'{fs}/disk.img'") as pid:
        assert holders_of_mount(mount_at(fs)) == [
            Holder("process", f"process {pid} (sh) has {fs}/disk.img open", pid)
        ]


def test_a_process_that_works_in_a_directory_holds_the_mount(fs: Path) -> None:
    with waiting_child("true", cwd=fs) as pid:
        assert descriptions(holders_of_mount(mount_at(fs))) == [f"process {pid} (sh) works in {fs}"]


def test_a_process_that_maps_a_file_holds_the_mount(fs: Path) -> None:
    (fs / "data").write_bytes(bytes(4096))
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        map_file_without_descriptor(fs / "data")
        os.write(write_fd, b"ready")
        signal.pause()
    try:
        assert os.read(read_fd, 5) == b"ready"
        found = [holder for holder in holders_of_mount(mount_at(fs)) if holder.pid == pid]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read_fd)
        os.close(write_fd)
    assert [holder.description.partition(") ")[2] for holder in found] == [f"maps {fs}/data"]


def test_a_process_that_runs_a_program_holds_the_mount(fs: Path) -> None:
    program = fs / "sleeper"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([program, "60"]) as process:
        wait_until(lambda: os.readlink(f"/proc/{process.pid}/exe") == str(program))
        try:
            found = descriptions(holders_of_mount(mount_at(fs)))
        finally:
            process.kill()
    assert found == [f"process {process.pid} (sleeper) runs {program}"]


def test_a_process_of_another_mount_namespace_holds_the_mount(fs: Path) -> None:
    command = ["unshare", "-m", "sh", "-c", f"exec 3>'{fs}/x'; echo ready; read -r _"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        holders = holders_of_mount(mount_at(fs))
        process.communicate(b"\n")
    assert [holder.pid for holder in holders] == [process.pid]


def test_a_holder_of_a_mount_that_hangs_is_found_without_asking_it(other_dir: Path) -> None:
    with silent_fuse_mount(other_dir):
        fd = os.open(other_dir, os.O_PATH)
        try:
            assert descriptions(holders_of_mount(mount_at(other_dir))) != []
        finally:
            os.close(fd)


def test_a_loop_device_on_a_file_holds_the_mount_and_its_mount_is_named(fs: Path, other_dir: Path) -> None:
    image = ext4_file(fs / "disk.img")
    with loop_device(image) as device, mounted(device, other_dir):
        assert descriptions(holders_of_mount(mount_at(fs))) == [f"loop device {device} (mounted on {other_dir})"]


def test_a_loop_device_is_found_after_its_file_was_renamed(fs: Path) -> None:
    image = ext4_file(fs / "disk.img")
    with loop_device(image) as device:
        image.rename(fs / "renamed.img")
        assert descriptions(holders_of_mount(mount_at(fs))) == [f"loop device {device}"]


def test_a_bind_mount_holds_the_mount(fs: Path, other_dir: Path) -> None:
    with mounted(fs, other_dir, "--bind"):
        assert descriptions(holders_of_mount(mount_at(fs))) == [f"it is also mounted on {other_dir}"]


def test_a_mount_on_top_of_a_directory_holds_the_mount(fs: Path) -> None:
    (fs / "sub").mkdir()
    with mounted("inner", fs / "sub", "-t", "tmpfs"):
        assert descriptions(holders_of_mount(mount_at(fs))) == [f"inner is mounted on {fs}/sub"]


def test_an_unused_image_has_no_holders(small_ext4: Path) -> None:
    assert holders_of_image(small_ext4) == []


def test_a_loop_mounted_image_is_held(small_ext4: Path, other_dir: Path) -> None:
    with loop_device(small_ext4) as device, mounted(device, other_dir):
        assert describe(holders_of_image(small_ext4)) == f"loop device {device} (mounted on {other_dir})"


def test_an_image_is_held_under_each_of_its_names(small_ext4: Path) -> None:
    hard_link = small_ext4.with_name("hard-link")
    hard_link.hardlink_to(small_ext4)
    soft_link = small_ext4.with_name("soft-link")
    soft_link.symlink_to(hard_link)
    with loop_device(small_ext4) as device:
        assert describe(holders_of_image(soft_link)) == f"loop device {device}"


@contextmanager
def partition_of(device: Path) -> Iterator[Path]:
    """The first partition of a device, made known by hand: not every kernel reads partition tables."""
    run("addpart", device, "1", "2048", "16384")
    try:
        partition = Path(f"{device}p1")
        wait_until(partition.exists)
        yield partition
    finally:
        run("delpart", device, "1")


def test_a_mounted_partition_of_a_loop_device_is_named(tmp_path: Path, other_dir: Path) -> None:
    disk = tmp_path / "disk.img"
    with disk.open("wb") as file:
        file.truncate(16 << 20)
    with loop_device(disk) as device, partition_of(device) as partition:
        run("mkfs.ext4", "-q", partition)
        with mounted(partition, other_dir):
            assert describe(holders_of_image(disk)) == f"loop device {device} (mounted on {other_dir})"
            assert describe(holders_of_image(device)) == f"{partition} is mounted on {other_dir}"
            assert describe(holders_of_image(partition)) == f"it is mounted on {other_dir}"


def test_a_mounted_btrfs_is_found_by_its_source(tmp_path: Path, other_dir: Path) -> None:
    image = tmp_path / "btrfs.img"
    with image.open("wb") as file:
        file.truncate(128 << 20)
    run("mkfs.btrfs", "-q", image)
    with loop_device(image) as device, mounted(device, other_dir):
        assert describe(holders_of_image(device)) == f"it is mounted on {other_dir}"


def test_a_loop_device_on_a_block_device_holds_it(small_ext4: Path) -> None:
    with loop_device(small_ext4) as lower, loop_device(lower) as upper:
        assert f"loop device {upper}" in descriptions(holders_of_image(lower))


def test_an_image_mounted_in_another_namespace_only_is_held(small_ext4: Path, other_dir: Path) -> None:
    with loop_device(small_ext4) as device:
        command = f"mount {device} '{other_dir}' && echo ready && read -r _"
        with subprocess.Popen(
            ["unshare", "-m", "sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            found = describe(holders_of_image(device))
            process.communicate(b"\n")
    assert found == f"it is mounted on {other_dir} for process {process.pid}"


def test_an_image_that_another_snapfs_shows_is_held(small_ext4: Path, other_dir: Path) -> None:
    with silent_fuse_mount(other_dir, source=str(small_ext4)):
        assert descriptions(holders_of_image(small_ext4)) == [f"snapfs shows it on {other_dir}"]


def test_swap_on_a_device_holds_it(tmp_path: Path) -> None:
    image = tmp_path / "swap.img"
    image.write_bytes(bytes(1 << 20))
    run("mkswap", image)
    with loop_device(image) as device:
        run("swapon", device)
        try:
            assert describe(holders_of_image(device)) == "it is used as swap"
            assert describe(holders_of_image(image)) == f"loop device {device} (used as swap)"
        finally:
            run("swapoff", device)


def test_swap_on_a_file_holds_it(tmp_path: Path) -> None:
    image = tmp_path / "swap file"
    image.write_bytes(bytes(1 << 20))
    image.chmod(0o600)
    run("mkswap", image)
    run("swapon", image)
    try:
        assert describe(holders_of_image(image)) == "it is used as swap"
    finally:
        run("swapoff", image)


def test_an_image_served_by_qemu_nbd_is_held(small_ext4: Path, tmp_path: Path) -> None:
    socket = tmp_path / "nbd"
    with subprocess.Popen(["qemu-nbd", "-f", "raw", "-t", "-k", socket, small_ext4]) as server:
        try:
            wait_until(socket.exists)
            found = holders_of_image(small_ext4)
        finally:
            server.send_signal(signal.SIGTERM)
    assert found == [Holder("lock", f"process {server.pid} (qemu-nbd) has locked it", server.pid)]


def test_a_device_mapper_device_on_top_is_named(
    small_ext4: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with loop_device(small_ext4) as device:
        sys_block = tmp_path / "block"
        info = device.stat()
        # The second is no device of this machine.
        numbers = {device.name: f"{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}", "dm-0": "4095:1"}
        for name, number in numbers.items():
            (sys_block / name / "holders").mkdir(parents=True)
            (sys_block / name / "dev").write_text(f"{number}\n")
        (sys_block / device.name / "holders" / "dm-0").mkdir()
        (sys_block / "dm-0" / "slaves" / device.name).mkdir(parents=True)
        (sys_block / "dm-0" / "dm").mkdir()
        (sys_block / "dm-0" / "dm" / "name").write_text("vg-root\n")
        monkeypatch.setattr(block_devices, "SYS_BLOCK", sys_block)
        assert describe(holders_of_image(device)) == "/dev/mapper/vg-root is built on it"


def test_holders_are_found_by_a_user_too(open_dir: Path) -> None:
    image = open_dir / "disk.img"
    image.write_bytes(bytes(1 << 20))
    with loop_device(image) as device:
        assert in_child(lambda: describe(holders_of_image(image)), user=65534) == f"loop device {device}"


def test_many_holders_are_shown_by_their_number() -> None:
    holders = [Holder("process", f"process {number}", number) for number in range(1, 7)]
    assert describe(holders) == "process 1, process 2, process 3 and 3 more"
