"""The files of a backup on a directory: which, as long as what, and that nothing of it stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nightly_rig import MIB, Nights, run, snapfs

from snapfs.system.processes import readable
from tests.machine import MNT_DETACH, mount_points_below, unmount, wait_until

STOPPING = Path(__file__).parents[1] / "cut" / "stopping_browse.py"


def make_image(nights: Nights, text: str) -> None:
    """An ext4 with a file of that text."""
    content = nights.path / f"files-{text}"
    content.mkdir()
    (content / "file").write_text(text)
    nights.image.unlink()
    with nights.image.open("wb") as file:
        file.truncate(16 * MIB)
    run("mkfs.ext4", "-q", "-F", "-d", content, nights.image)


@pytest.fixture
def place(nights: Nights) -> Iterator[Path]:
    """An empty directory, beside a full backup and an increment; nothing is mounted there at the end."""
    for text in ("first", "second"):
        make_image(nights, text)
        nights.back_up()
    place = nights.path / "place"
    place.mkdir()
    yield place
    for point in reversed(mount_points_below(place)):
        unmount(point, MNT_DETACH)


def shown(source: Path, place: Path, *words: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(snapfs("browse", source, place, "--json", *words).ok().out)
    return found


def end(place: Path) -> None:
    snapfs("browse", "--end", place).ok()
    assert os.listdir(place) == []


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def keeper_of(nights: Nights) -> int:
    """The one process that has locked the directory of backups."""
    inode = nights.backups.stat().st_ino
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if (directory / "comm").read_text() == "snapfs-browse\n" and any(
                link.stat().st_ino == inode for link in (directory / "fd").iterdir() if link.is_dir()
            ):
                return int(directory.name)
        except OSError:
            continue
    raise AssertionError("nobody keeps the backup")


def assert_free(nights: Nights) -> None:
    """The directory can be changed, and no file of QEMU's is mounted anywhere."""
    snapfs("prune", nights.backups, "--keep-last", "9").ok()
    assert "/.snapfs-" not in Path("/proc/self/mountinfo").read_text()


def await_free(nights: Nights) -> None:
    """The same, after something that nobody has waited for."""
    wait_until(lambda: snapfs("prune", nights.backups, "--keep-last", "9").code == 0)
    assert_free(nights)


def test_the_files_of_the_newest_and_of_an_older_one(nights: Nights, place: Path) -> None:
    names = [one["name"] for one in nights.listed()]
    for words, text, name in (((), "second", names[1]), (("--at", names[0]), "first", names[0])):
        found = shown(nights.backups, place, *words)
        assert (place / "file").read_text() == text
        assert found["backup"] == str(nights.backups / f"{name}.qcow2")
        assert (found["snapshot"]["name"], found["snapshot"]["id"]) == (name, None)
        with pytest.raises(OSError, match="Read-only"):
            (place / "new").touch()
        end(place)
        assert_free(nights)


def test_the_file_of_one_names_it(nights: Nights, place: Path) -> None:
    shown(nights.file(0, ".qcow2"), place)
    assert (place / "file").read_text() == "first"
    end(place)


def test_the_partitions_of_a_disk(nights: Nights, place: Path) -> None:
    disk = nights.path / "disk"
    with disk.open("wb") as file:
        file.truncate(20 * MIB)
    words = ["sfdisk", "-q", "--no-reread", "--no-tell-kernel", disk]
    subprocess.run(words, input="label: gpt\nstart=2048\n", text=True, check=True, timeout=20)
    run("dd", f"if={nights.image}", f"of={disk}", "bs=1M", "seek=1", "conv=notrunc,sparse")
    disk.replace(nights.image)
    nights.back_up()
    shown(nights.backups, place)
    assert (place / "p1" / "file").read_text() == "second"
    end(place)
    assert_free(nights)


def test_umount_ends_all_of_it(nights: Nights, place: Path) -> None:
    shown(nights.backups, place)
    keeper = keeper_of(nights)
    pidfds = [os.pidfd_open(pid) for pid in (keeper, *children(keeper))]
    run("umount", "-R", place)
    assert all(readable([fd], 20) for fd in pidfds)
    for fd in pidfds:
        os.close(fd)
    assert_free(nights)


def test_nobody_changes_the_directory_meanwhile(nights: Nights, place: Path) -> None:
    shown(nights.backups, place)
    done = snapfs("prune", nights.backups, "--keep-last", "1")
    assert done.code == 1
    assert f"{nights.backups} is in use: process {keeper_of(nights)} (snapfs-browse) has locked it; " in done.err
    assert "; wait for its end, or have it (snapfs browse --end).\n" in done.err
    assert nights.restored() == nights.image.read_bytes()
    end(place)


@pytest.mark.parametrize("which", ["keeper", "daemon"])
def test_what_a_killed_one_leaves_can_be_ended(nights: Nights, place: Path, which: str) -> None:
    shown(nights.backups, place)
    keeper = keeper_of(nights)
    (daemon,) = children(keeper)
    pidfds = [os.pidfd_open(pid) for pid in (keeper, daemon)]
    os.kill(keeper if which == "keeper" else daemon, signal.SIGKILL)
    assert all(readable([fd], 20) for fd in pidfds)
    for fd in pidfds:
        os.close(fd)
    assert os.path.ismount(place)
    end(place)
    assert_free(nights)


def stopped(nights: Nights, place: Path, how: str) -> int:
    """The code of a `snapfs browse` to which that happens when it has mounted the filesystem."""
    words = [sys.executable, STOPPING, how, "browse", nights.backups, place]
    return subprocess.run(words, capture_output=True, check=False, timeout=40).returncode


def test_of_one_that_is_interrupted_nothing_is_left(nights: Nights, place: Path) -> None:
    assert stopped(nights, place, "interrupted") == 130
    assert os.listdir(place) == []
    await_free(nights)


def test_what_a_killed_command_has_mounted_can_be_ended(nights: Nights, place: Path) -> None:
    assert stopped(nights, place, "killed") == -signal.SIGKILL
    assert (place / "file").read_text() == "second"
    end(place)
    assert_free(nights)


def test_where_no_files_can_be_shown(nights: Nights, place: Path) -> None:
    nights.image.write_bytes(os.urandom(16 * MIB))
    nights.back_up()
    done = snapfs("browse", nights.backups, place)
    assert (done.code, done.out) == (1, "")
    assert f"No files of {nights.file(2, '.qcow2')} can be shown (the image: " in done.err
    await_free(nights)


def test_a_damaged_backup_is_not_shown(nights: Nights, place: Path) -> None:
    nights.file(1, ".json").write_text("{}")
    assert snapfs("browse", nights.backups, place).code == 3
    assert os.listdir(place) == []


def test_a_name_is_said_with_at(nights: Nights, place: Path) -> None:
    done = snapfs("browse", nights.backups, "monday", place)
    assert (done.code, "say which one with --at monday." in done.err) == (2, True)
