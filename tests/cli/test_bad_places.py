"""LIVE, SNAP and the store in places where they cannot work, and names that are too long."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import (
    NOBODY,
    Bench,
    Done,
    Room,
    loop_device,
    mounted,
    processes_about,
    run,
    small_filesystem,
    snapfs,
    wait_until,
)

DEEP_BYTES = 150  # a socket address holds 108


@pytest.fixture(params=["LIVE", "SNAP"])
def view(request: pytest.FixtureRequest, bench: Bench) -> tuple[str, Path]:
    name = str(request.param)
    return name, bench.live if name == "LIVE" else bench.snap


# --- LIVE and SNAP -------------------------------------------------------------------------------------------


def test_a_missing_mount_point(bench: Bench, view: tuple[str, Path]) -> None:
    view[1].rmdir()
    with bench.untouched():
        bench.mount().refuses(1, f"{view[0]} {view[1]} does not exist")


def test_a_file_as_mount_point(bench: Bench, view: tuple[str, Path]) -> None:
    view[1].rmdir()
    view[1].touch()
    with bench.untouched():
        bench.mount().refuses(1, f"{view[0]} {view[1]} is not a directory")


def test_a_mount_point_with_something_in_it(bench: Bench, view: tuple[str, Path]) -> None:
    (view[1] / "file").touch()
    with bench.untouched():
        bench.mount().refuses(1, f"{view[0]} {view[1]} is not empty")


def test_one_directory_for_both_views(bench: Bench) -> None:
    with bench.untouched():
        snapfs("mount", bench.image, bench.live, bench.live).refuses(1, "LIVE and SNAP are the same directory")


def test_one_directory_under_two_names_for_both_views(bench: Bench) -> None:
    link = bench.path / "link"
    link.symlink_to(bench.live)
    with bench.untouched():
        snapfs("mount", bench.image, bench.live, link).refuses(1, "LIVE and SNAP are the same directory")


def test_a_view_inside_the_other(bench: Bench) -> None:
    inner = bench.live / "snap"
    inner.mkdir()
    with bench.untouched():
        snapfs("mount", bench.image, bench.live, inner).refuses(1, f"SNAP {inner} is inside LIVE")


def test_a_mount_point_in_use(bench: Bench, view: tuple[str, Path]) -> None:
    with mounted("none", view[1], "-t", "tmpfs"), bench.untouched():
        bench.mount().refuses(1, f"{view[0]} {view[1]} is already a mount")


def test_a_mount_point_of_another_user(user_bench: Bench, room: Room) -> None:
    os.chown(user_bench.snap, 0, 0)
    with user_bench.untouched():
        user_bench.mount(before=room.before(NOBODY)).refuses(1, f"SNAP {user_bench.snap} may not be mounted on")


# --- the store -----------------------------------------------------------------------------------------------


def test_a_store_inside_a_view(bench: Bench, view: tuple[str, Path]) -> None:
    with bench.untouched():
        bench.mount("--store", view[1] / "store").refuses(1, "The store", f"is inside {view[0]}")


def test_a_store_that_is_a_view(bench: Bench, view: tuple[str, Path]) -> None:
    with bench.untouched():
        bench.mount("--store", view[1]).refuses(1, "The store", f"is inside {view[0]}")


def test_a_default_store_inside_a_view(bench: Bench) -> None:
    """An image in the directory that the live view would hide."""
    run("mv", bench.image, bench.live / "disk.img")
    with bench.untouched():
        done = snapfs("mount", bench.live / "disk.img", bench.live, bench.snap)
        done.refuses(1, f"LIVE {bench.live} is not empty")


def test_a_store_on_a_filesystem_mounted_from_the_live_view(bench: Bench) -> None:
    bench.image.unlink()
    run("mkfs.ext4", "-q", bench.image, "8M")
    with bench.mounted(), loop_device(bench.live_file) as device, mounted(device, bench.path / "inner") as inner:
        other = bench.path / "other.img"
        other.write_bytes(os.urandom(1 << 20))
        done = snapfs("mount", other, bench.live, bench.snap, "--store", inner / "store")
        done.refuses(1, f"LIVE {bench.live} is already a mount")
        assert os.listdir(inner) == ["lost+found"]


def test_a_store_on_a_filesystem_that_a_killed_live_view_holds(bench: Bench) -> None:
    """The dead view is cleared away before the new mount; what was mounted from it can hold nothing any more."""
    bench.image.unlink()
    run("mkfs.ext4", "-q", bench.image, "8M")
    bench.mount().ok()
    with loop_device(bench.live_file) as device, mounted(device, bench.path / "inner") as inner:
        os.kill(bench.status()["pid"], 9)
        wait_until(lambda: not processes_about(bench.path))
        done = bench.mount("--store", inner / "store")
        done.refuses(1, f"The store {inner / 'store'}", "--store")


def test_a_store_below_a_directory_that_does_not_exist(bench: Bench) -> None:
    with bench.untouched():
        done = bench.mount("--store", bench.path / "no" / "store")
        done.refuses(1, f"{bench.path / 'no'} does not exist")


def test_a_file_as_store(bench: Bench) -> None:
    bench.store.touch()
    with bench.untouched():
        bench.mount("--store", bench.store).refuses(1, f"{bench.store} is not a directory")


def test_a_directory_of_the_users_as_store(bench: Bench) -> None:
    bench.store.mkdir()
    (bench.store / "thesis.txt").write_text("mine")
    with bench.untouched():
        bench.mount("--store", bench.store).refuses(1, "holds other files (thesis.txt)", "give another --store")


def test_a_store_on_a_full_disk(bench: Bench) -> None:
    with small_filesystem(bench.path, 4 << 20) as small:
        fill(small)
        with bench.untouched():
            bench.mount("--store", small / "store").refuses(1, f"{small / 'store'} has no room")
        assert sorted(os.listdir(small)) == ["filler", "lost+found"]


def test_a_store_on_a_disk_without_room_for_the_ring(bench: Bench) -> None:
    """Mounting needs little; the first write that must preserve finds the disk too small, which is an overflow."""
    with small_filesystem(bench.path, 4 << 20) as small:
        bench.mount("--store", small / "store").ok()
        before = bench.image.read_bytes()
        with bench.live_file.open("r+b") as file:
            file.write(b"live data")
        assert bench.umount().code == 0
        assert bench.image.read_bytes() == b"live data" + before[9:]


def test_a_store_on_a_read_only_filesystem(bench: Bench) -> None:
    with mounted("none", bench.path / "ro", "-t", "tmpfs", "-o", "ro") as point, bench.untouched():
        bench.mount("--store", point / "store").refuses(1, "read-only filesystem")


NO_SPARSE_FILES = "import os; os.ftruncate = lambda fd, length: os.pwrite(fd, bytes(length), 0)"
NO_MAPPING = "import mmap, os\ndef refuse(*_): raise OSError(19, os.strerror(19))\nmmap.mmap = refuse"


@pytest.mark.parametrize(
    ("patch", "lack"), [(NO_SPARSE_FILES, "without sparse files"), (NO_MAPPING, "without memory mapping")]
)
def test_a_store_on_a_filesystem_that_lacks_what_it_needs(bench: Bench, patch: str, lack: str) -> None:
    """No such filesystem is at hand on every kernel, so the calls answer as they would on one."""
    script = bench.path.with_name(f"{bench.path.name}-lacking.py")
    script.write_text(f"import snapfs.cli\n{patch}\nsnapfs.cli.main()\n")
    words = [sys.executable, script, "mount", bench.image, bench.live, bench.snap]
    try:
        with bench.untouched():
            done = subprocess.run(words, capture_output=True, text=True, timeout=60)
            Done(done.returncode, done.stdout, done.stderr).refuses(1, "The store", lack, "ext4, XFS, btrfs")
    finally:
        script.unlink()


def test_a_default_store_in_a_directory_that_may_not_be_written(user_bench: Bench, room: Room) -> None:
    os.chown(user_bench.path, 0, 0)
    with user_bench.untouched():
        done = user_bench.mount(before=room.before(NOBODY))
        done.refuses(1, f"{user_bench.default_store}", "may not write to", "--store")


def test_a_store_of_another_user(user_bench: Bench, room: Room) -> None:
    user_bench.store.mkdir(0o700)
    with user_bench.untouched():
        done = user_bench.mount("--store", user_bench.store, before=room.before(NOBODY))
        done.refuses(1, f"{user_bench.store} cannot be written")


def fill(directory: Path) -> None:
    """To the last block."""
    fd = os.open(directory / "filler", os.O_WRONLY | os.O_CREAT)
    try:
        for size_bytes in (1 << 20, 4096, 1024):
            try:
                while True:
                    os.write(fd, bytes(size_bytes))
            except OSError:
                continue
        os.fsync(fd)
    finally:
        os.close(fd)


# --- long names ----------------------------------------------------------------------------------------------


def test_an_image_whose_name_leaves_no_room_for_the_stores(bench: Bench) -> None:
    long = bench.image.with_name("n" * 250)
    bench.image.rename(long)
    with bench.untouched():
        done = snapfs("mount", long, bench.live, bench.snap)
        done.refuses(1, "The store", "name is too long", "--store")


def test_an_image_whose_name_leaves_no_room_works_with_a_store_elsewhere(bench: Bench) -> None:
    long = bench.image.with_name("n" * 250)
    bench.image.rename(long)
    snapfs("mount", long, bench.live, bench.snap, "--store", bench.store).ok()
    assert (bench.live / long.name).read_bytes() == long.read_bytes()
    bench.umount().ok()


def test_a_name_longer_than_any(bench: Bench) -> None:
    with bench.untouched():
        done = snapfs("mount", bench.path / ("n" * 300), bench.live, bench.snap)
        done.refuses(1, "name is too long")


def test_everything_lies_very_deep(bench: Bench) -> None:
    deep = bench.path / ("d" * DEEP_BYTES) / ("e" * DEEP_BYTES)
    (deep / "live").mkdir(parents=True)
    (deep / "snap").mkdir()
    run("mv", bench.image, deep / "disk.img")
    snapfs("mount", deep / "disk.img", deep / "live", deep / "snap").ok()
    assert '"active"' in snapfs("status", deep / "snap", "--json").ok().out
    snapfs("limit", deep / "disk.img", "1G").ok()
    snapfs("umount", deep / "live").ok()
    assert sorted(os.listdir(deep)) == ["disk.img", "live", "snap"]


@pytest.mark.parametrize("name", ["a b,c\\d\n'\"e", "ünï-\udcff", "-f"])
def test_names_with_strange_characters(bench: Bench, name: str) -> None:
    strange = bench.path / name
    (strange / "live").mkdir(parents=True)
    (strange / "snap").mkdir()
    image = strange / f"{name}.img"
    bench.image.rename(image)
    snapfs("mount", "--", *(os.fsencode(path) for path in (image, strange / "live", strange / "snap"))).ok()
    assert snapfs("status", image).ok().out
    snapfs("umount", "--", image).ok()
    assert sorted(os.listdir(strange)) == sorted([image.name, "live", "snap"])


def test_a_filesystem_without_memory_mapping(bench: Bench) -> None:
    """procfs cannot hold a store whatever the way it says so."""
    with bench.untouched():
        done = bench.mount("--store", "/proc/store")
        done.refuses(1, "The store /proc/store", "give a directory")
