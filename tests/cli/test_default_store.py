"""Where the store is when nobody says it: beside an image file, never beside a device, and always found again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.system import default_store as default_store_module
from snapfs.system.default_store import STATE_DIRECTORY, default_store, prepare_store
from snapfs.system.device_identity import device_identity
from tests.cli.command_line import NOBODY, Bench, Room, loop_device, mounted, processes_about, run, snapfs, wait_until

MIB = 1 << 20


@pytest.fixture
def state(bench: Bench) -> Iterator[Path]:
    """/var/lib/snapfs is a directory of this test's own, as far as this test sees."""
    STATE_DIRECTORY.mkdir(mode=0o700, exist_ok=True)
    own = bench.path / "state"
    own.mkdir(mode=0o700)
    with mounted(own, STATE_DIRECTORY, "--bind"):
        yield STATE_DIRECTORY


def test_a_store_that_is_named_in_var_lib_snapfs_needs_nothing_made_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "state"
    monkeypatch.setattr(default_store_module, "STATE_DIRECTORY", state)
    assert prepare_store(tmp_path / "disk.img", state / "disk") == state / "disk"
    assert state.stat().st_mode & 0o777 == 0o700


@contextmanager
def device_of(bench: Bench) -> Iterator[Path]:
    with loop_device(bench.image) as device:
        yield device


@contextmanager
def alone_at(path: Path, image: Path) -> Iterator[None]:
    """One file, mounted as containers do it."""
    path.touch()
    run("mount", "--bind", image, path)
    try:
        yield
    finally:
        run("umount", path)


def mount(device: Path, bench: Bench, *words: str | Path) -> str:
    return snapfs("mount", device, bench.live, bench.snap, *words).ok().out


def test_the_store_of_a_device_is_on_a_disk_and_goes_at_the_end(bench: Bench, state: Path) -> None:
    with device_of(bench) as device:
        before = set(os.listdir("/dev"))
        mount(device, bench)
        (store,) = state.iterdir()
        assert (store, set(os.listdir("/dev"))) == (default_store(device), before)
        assert store.stat().st_mode & 0o777 == 0o700
        assert bench.status()["store"] == str(store)
        snapfs("umount", device).ok()
        assert list(state.iterdir()) == []


def test_a_killed_instance_is_carried_on_by_any_name_of_the_device(bench: Bench, state: Path) -> None:
    with device_of(bench) as device:
        mount(device, bench)
        old = (bench.snap / device.name).read_bytes()
        run("dd", "if=/dev/urandom", f"of={bench.live / device.name}", "bs=64K", "count=1", "conv=notrunc,fsync")
        for number in (1, 2):
            for pid in processes_about(bench.path):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: not processes_about(bench.path))
            other = bench.path / f"name{number}"
            if number == 1:
                other.symlink_to(device)
            else:
                os.mknod(other, 0o60600, device.stat().st_rdev)
            assert "Carrying on with the same snapshot" in mount(other, bench)
            assert next(bench.snap.iterdir()).read_bytes() == old
        (store,) = state.iterdir()
        assert f"{store} is whole" in snapfs("check", other).ok().out
        snapfs("umount", bench.live).ok()


def test_the_next_file_on_the_same_loop_device_has_another_store(bench: Bench, state: Path) -> None:
    """A name of the kernel alone would lead to the store of another disk."""
    with device_of(bench) as device:
        first = default_store(device)
    other = bench.path / "other.img"
    other.write_bytes(bytes(MIB))
    with loop_device(other) as device:
        assert default_store(device) != first


def test_an_ordinary_user_has_to_name_a_place_for_the_store_of_a_device(user_bench: Bench, room: Room) -> None:
    with loop_device(user_bench.image) as device:
        os.chown(device, NOBODY, NOBODY)
        try:
            done = snapfs("mount", device, user_bench.live, user_bench.snap, before=room.before(NOBODY))
            done.refuses(1, "is a block device", "--store")
        finally:
            os.chown(device, 0, 0)


def test_a_state_directory_in_memory_is_refused(bench: Bench, state: Path) -> None:
    with device_of(bench) as device, mounted("none", state, "-t", "tmpfs"), bench.untouched():
        snapfs("mount", device, bench.live, bench.snap).refuses(1, "which is memory", "--store")


def test_an_image_mounted_alone_into_memory_asks_for_a_place(bench: Bench) -> None:
    name = bench.path / "memory" / "disk.img"
    with mounted("none", name.parent, "-t", "tmpfs"), alone_at(name, bench.image):
        snapfs("mount", name, bench.live, bench.snap).refuses(1, "lies in memory", "--store")


def test_an_image_that_is_itself_in_memory_has_its_store_beside_it(bench: Bench) -> None:
    with mounted("none", bench.path / "memory", "-t", "tmpfs") as memory:
        run("cp", bench.image, memory / "disk.img")
        snapfs("mount", memory / "disk.img", bench.live, bench.snap).ok()
        assert bench.status()["store"] == str(memory / "disk.img.snapfs")
        bench.umount().ok()


def test_an_image_on_a_read_only_disk_asks_for_a_place(bench: Bench) -> None:
    """The file may be written, the directory may not."""
    tree = bench.path / "tree"
    with mounted("none", tree, "-t", "tmpfs"), alone_at(tree / "disk.img", bench.image):
        run("mount", "-o", "remount,ro", tree)
        snapfs("mount", tree / "disk.img", bench.live, bench.snap).refuses(1, "--store")
        mount(tree / "disk.img", bench, "--store", bench.store)
        bench.umount().ok()


def test_a_link_to_an_image_leads_to_the_store_beside_the_image(bench: Bench) -> None:
    link = bench.path / "elsewhere" / "link.img"
    link.parent.mkdir()
    link.symlink_to(bench.image)
    fd = os.open(bench.image, os.O_RDWR)
    try:
        for name in (link, Path(f"/proc/{os.getpid()}/fd/{fd}")):
            mount(name, bench)
            assert bench.status()["store"] == str(bench.default_store)
            snapfs("check", name).ok()
            bench.umount().ok()
    finally:
        os.close(fd)


def test_an_image_without_a_name_is_refused(bench: Bench) -> None:
    fd = os.open(bench.image, os.O_RDWR)
    bench.image.unlink()
    try:
        done = snapfs("mount", f"/proc/{os.getpid()}/fd/{fd}", bench.live, bench.snap)
        done.refuses(1, "does not exist")
    finally:
        os.close(fd)


# --- names of disks ------------------------------------------------------------------------------------------


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A machine with one disk, 8:16, and a partition on it, 8:17."""
    disk = tmp_path / "devices" / "sdb"
    (disk / "sdb1").mkdir(parents=True)
    (disk / "sdb1" / "partition").write_text("1\n")
    (disk / "dev").write_text("8:16\n")
    numbers = tmp_path / "numbers"
    numbers.mkdir()
    (numbers / "8:16").symlink_to(disk)
    (numbers / "8:17").symlink_to(disk / "sdb1")
    (tmp_path / "udev").mkdir()
    return tmp_path


def identity(sysfs: Path, minor: int) -> str | None:
    return device_identity(os.makedev(8, minor), sysfs / "numbers", sysfs / "udev")


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("device/wwid", "naa.5000c5001234\n", "wwid naa.5000c5001234"),
        ("wwid", "eui.0025388b710116a1\n", "wwid eui.0025388b710116a1"),
        ("serial", "VIRTIO7\n", "serial VIRTIO7"),
        ("dm/uuid", "LVM-abc\n", "dm LVM-abc"),
        ("loop/backing_file", "/srv/disk.img\n", "loop /srv/disk.img "),
        ("serial", "\n", None),
    ],
)
def test_a_disk_is_named_by_what_it_says(sysfs: Path, file: str, text: str, expected: str | None) -> None:
    path = sysfs / "devices" / "sdb" / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    assert identity(sysfs, 16) == expected
    assert identity(sysfs, 17) == (expected and f"{expected}-part1")


def test_udev_knows_what_sysfs_does_not_show(sysfs: Path) -> None:
    (sysfs / "udev" / "b8:16").write_text("S:disk/by-id/usb-x\nE:ID_SERIAL=Kingston_1\nE:ID_BUS=usb\n")
    assert identity(sysfs, 17) == "serial Kingston_1-part1"


def test_a_device_that_is_not_there_has_no_identity(sysfs: Path) -> None:
    assert identity(sysfs, 99) is None
