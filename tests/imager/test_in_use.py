"""Whatever name leads to an image or a store that somebody has: nothing is written there, with --force either."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from imager_rig import MIB, Bench, loop_device, mounted, run, snapfs, wait_until

from snapfs.destination.place import look_at
from snapfs.errors import BusyError
from tests.cli.command_line import SNAPFS, own_room


def content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def name_of_the_image(bench: Bench, name: str) -> Iterator[Path]:
    """One of the ways to name what snapfs shows."""
    place = bench.path / "name"
    if name == "itself":
        yield bench.image
    elif name == "hard link":
        os.link(bench.image, place)
        yield place
    elif name == "symbolic link":
        place.symlink_to(bench.image)
        yield place
    elif name == "renamed":
        yield bench.image.rename(place)
        place.rename(bench.image)
    elif name == "bind mount":
        place.touch()
        with bound(bench.image, place):
            yield place
    elif name == "loop device":
        with loop_device(bench.image) as device:
            yield device
    elif name == "partition":
        with loop_device(bench.image, f"--offset={4 * MIB}") as device:
            yield device
    elif name == "live view":
        yield bench.live_file
    elif name == "snapshot view":
        yield bench.snap_file
    elif name == "bound view":
        place.touch()
        with bound(bench.live_file, place):
            yield place
    else:
        assert name == "loop device over the live view"
        with loop_device(bench.live_file) as device:
            yield device


@contextmanager
def bound(source: Path, target: Path) -> Iterator[None]:
    run("mount", "--bind", source, target)
    try:
        yield
    finally:
        run("umount", target)


NAMES = [
    "itself",
    "hard link",
    "symbolic link",
    "renamed",
    "bind mount",
    "loop device",
    "partition",
    "live view",
    "snapshot view",
    "bound view",
    "loop device over the live view",
]


def test_the_image_being_shown_is_no_destination_whatever_its_name(bench: Bench) -> None:
    other = bench.path / "other.img"
    other.write_bytes(bytes(64 * MIB))
    snapfs("backup", other, bench.path / "backup").ok()
    with bench.mounted():
        before = content(bench.live_file)
        for number, name in enumerate(NAMES):
            with name_of_the_image(bench, name) as dest:
                with pytest.raises(BusyError, match=r"is in use|is in a view"):
                    look_at(dest, takes_devices=True)
                commands = (
                    ("backup", bench.live, dest),
                    ("restore", bench.path / "backup", dest),
                    ("map", other, "--domain", dest),
                    ("backup", other, bench.path / "another", "--manifest", dest),
                )
                if number % 3 == 0:
                    snapfs(*commands[number // 3], "--force").refuses(1, "is in ")
            assert not (bench.path / "name.partial").exists()
            (bench.path / "name").unlink(missing_ok=True)
        assert content(bench.live_file) == before
    assert content(bench.image) == before


def test_nothing_is_written_into_a_store(bench: Bench) -> None:
    """Known by what is in it: this one has another name, and nobody has it mounted any more."""
    with bench.mounted("--store", bench.store):
        pass
    moved = bench.store.rename(bench.path / "innocent")
    (moved / "new").mkdir()
    for name in ("header", "cut-00000001/index", "mine", "new/../mine"):
        with pytest.raises(BusyError, match="store of a snapshot"):
            look_at(moved / name)
    snapfs("backup", bench.image, moved / "mine", "--force").refuses(1, str(moved), "store of a snapshot")
    (moved / "header").unlink()
    snapfs("backup", bench.image, f"{moved}/").refuses(1, "store of a snapshot")


def test_what_others_have_is_no_destination(bench: Bench) -> None:
    """A loop device, a mount of it, a QEMU, a snapfs of another mount namespace."""
    dest = bench.path / "dest.img"
    run("cp", bench.image, dest)
    snapfs("backup", bench.image, bench.path / "backup").ok()
    backup, restore = ("backup", bench.image), ("restore", bench.path / "backup")
    before = content(dest)
    with loop_device(dest, "--read-only"):
        snapfs(*backup, dest, "--force").refuses(1, "is in use", "loop device")
    with mounted(dest, bench.path / "point", "-o", "loop,ro,noload"):
        snapfs(*restore, dest, "--force").refuses(1, "is in use", "mounted on")
    with subprocess.Popen(["qemu-nbd", "-f", "raw", "-t", "-k", bench.path / "nbd", dest]) as server:
        try:
            wait_until((bench.path / "nbd").exists)
            snapfs(*backup, dest, "--force").refuses(1, "is in use", "qemu-nbd")
            with loop_device(dest) as device:
                snapfs(*restore, device, "--force").refuses(1, "is in use", str(dest))
        finally:
            server.send_signal(signal.SIGTERM)
    with own_room(f"cd '{bench.path}'; mkdir l s; '{SNAPFS}' mount dest.img l s >&2"):
        try:
            snapfs(*backup, dest, "--force").refuses(1, "is in use", "snapfs")
        finally:
            bench.end_processes()
    assert content(dest) == before


def test_a_device_under_a_mounted_filesystem_is_no_destination(bench: Bench) -> None:
    dest = bench.path / "dest.img"
    run("cp", bench.image, dest)
    with loop_device(dest) as device, mounted(device, bench.path / "point"):
        snapfs("backup", bench.image, device, "--force").refuses(1, "is in use", "mounted on")
        with loop_device(dest) as second:
            snapfs("backup", bench.image, second, "--force").refuses(1, "is in use", str(device))
    with loop_device(dest) as device, loop_device(dest, f"--offset={MIB}", f"--sizelimit={MIB}") as second:
        snapfs("backup", bench.image, second, "--force").refuses(1, "is in use", str(device))


def test_what_is_being_read_is_no_destination(bench: Bench) -> None:
    backup, link = bench.path / "backup", bench.path / "link"
    snapfs("backup", bench.image, backup).ok()
    before = content(bench.image), content(backup)
    os.link(bench.image, link)
    snapfs("backup", bench.image, bench.image, "--force").refuses(2, "the image itself")
    snapfs("map", bench.image, "--svg", link, "--force").refuses(2, "the image itself")
    snapfs("backup", bench.image, bench.path / "new", "--manifest", link, "--force").refuses(2, "the image itself")
    with loop_device(backup) as device:
        snapfs("restore", backup, device, "--force").refuses(2, "the backup itself")
    snapfs("backup", bench.image, bench.path / "new", "--manifest", bench.path / "new").refuses(2, "name two")
    snapfs("map", bench.image, "--png", bench.path / "x", "--svg", bench.path / "x").refuses(2, "name two")
    assert (content(bench.image), content(backup)) == before
