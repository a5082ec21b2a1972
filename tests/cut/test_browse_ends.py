"""Where the files of a snapshot may be shown, how that ends, and that nothing is left of one that did not succeed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from browse_rig import assert_nothing_left, browsed, ext4_with, files_of, make_disk
from cut_rig import CutGround, finished, run, snapfs
from mounted import Mounted

STOPPING = Path(__file__).with_name("stopping_browse.py")


@pytest.fixture
def instance(ground: CutGround) -> Mounted:
    """A disk with two filesystems."""
    part = ext4_with(files_of(ground, "text"), ground.path / "part.img")
    return ground.mounted(make_disk(ground, part, part))


@pytest.fixture
def place(ground: CutGround) -> Path:
    place = ground.path / "place"
    place.mkdir()
    return place


@pytest.mark.parametrize(("what", "code"), [("interrupted", 130), ("ended", 130), ("failing", 1)])
def test_half_way_nothing_is_left(ground: CutGround, instance: Mounted, place: Path, what: str, code: int) -> None:
    ended, out, err = finished(ground.started(sys.executable, STOPPING, what, "browse", instance.live, place))
    assert (ended, out) == (code, "")
    assert err.strip() == "" or "No loop device can be made: No space left on device; " in err
    assert_nothing_left(ground, place)


def test_what_a_killed_one_has_mounted_can_be_ended(ground: CutGround, instance: Mounted, place: Path) -> None:
    finished(ground.started(sys.executable, STOPPING, "killed", "browse", instance.live, place))
    assert (place / "p1" / "file").read_text() == "text"
    assert snapfs("browse", "--end", place).returncode == 0
    assert_nothing_left(ground, place)


def test_it_can_be_ended_when_the_servers_were_killed(ground: CutGround, place: Path) -> None:
    instance = ground.mounted(ext4_with(files_of(ground, "text"), ground.path / "disk.img"))
    browsed(instance.live, place)
    instance.kill()
    assert snapfs("browse", "--end", place).returncode == 0
    assert_nothing_left(ground, place)
    instance.mount()


def test_where_they_cannot_be_shown(ground: CutGround, instance: Mounted, place: Path) -> None:
    (place / "file").touch()
    for directory, reason in (
        (place, "is not empty, a mount would hide what is in it; "),
        (place / "file", "is not a directory; "),
        (place / "missing", "does not exist; "),
        (instance.snap, "is already a mount; "),
    ):
        done = snapfs("browse", instance.live, directory)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"DIR {directory} {reason}" in done.stderr
    assert os.listdir(place) == ["file"]


@pytest.mark.parametrize(
    "words", [(), ("LIVE",), ("LIVE", "a", "b", "DIR"), ("--end", "DIR", "LIVE"), ("--end", "DIR", "LIVE", "DIR")]
)
def test_what_is_shown_and_where_or_what_is_ended(words: tuple[str, ...]) -> None:
    done = snapfs("browse", *words)
    sentence = "snapfs: It takes LIVE (and a NAME) and DIR, or --end and DIR alone; see snapfs browse --help.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


def test_what_is_in_use_is_not_ended(ground: CutGround, instance: Mounted, place: Path) -> None:
    browsed(instance.live, place)
    with (place / "p2" / "file").open():
        done = snapfs("browse", "--end", place)
        assert (done.returncode, f"has {place / 'p2' / 'file'} open" in done.stderr) == (1, True)
    run("mount", "-t", "tmpfs", "inner", place / "p1" / "lost+found")
    done = snapfs("browse", "--end", place)
    assert f"inner is mounted on {place / 'p1' / 'lost+found'}; end that and try again" in done.stderr
    assert (place / "p1" / "file").read_text() == (place / "p2" / "file").read_text()
    run("umount", "-R", place)
    assert_nothing_left(ground, place)


def test_only_files_of_a_snapshot_are_ended(ground: CutGround, instance: Mounted, place: Path) -> None:
    for directory in (place, instance.live, instance.snap, place / "missing"):
        done = snapfs("browse", "--end", directory)
        assert (done.returncode, f"{directory} shows no files of a snapshot that is mounted; " in done.stderr) == (
            1,
            True,
        )
    other = ground.mount(ground.loop(ground.path / "part.img"), name="other")
    assert snapfs("browse", "--end", other).returncode == 1
    assert (other / "file").exists()


def test_the_views_are_not_unmounted_below_them(ground: CutGround, instance: Mounted, place: Path) -> None:
    browsed(instance.live, place)
    done = snapfs("umount", instance.live)
    assert done.returncode == 1
    assert f"(mounted on {place / 'p1'})" in done.stderr
    assert f"; end that (snapfs browse --end {place}) and try again (nothing was unmounted).\n" in done.stderr
    assert snapfs("browse", "--end", place).returncode == 0
    instance.umount()


def test_what_was_mounted_by_hand_is_named_and_ended_alike(ground: CutGround, place: Path) -> None:
    instance = ground.mounted(ext4_with(files_of(ground, "text"), ground.path / "disk.img"))
    run("mount", "-o", "loop,ro", instance.snap_file, place)
    assert f"(snapfs browse --end {place})" in snapfs("umount", instance.live).stderr
    assert snapfs("browse", "--end", place).returncode == 0
    assert_nothing_left(ground, place)
