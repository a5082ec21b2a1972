"""`snapfs revert`: the live image becomes a snapshot again, and what was since is one too."""

from __future__ import annotations

import os
import sys

import pytest
from cut_rig import MIB, CutGround, cut, run, snapfs
from mounted import Mounted
from revert_rig import file_of, kept, names, new_instance, refused, reverted, stopping_revert, write


@pytest.fixture
def instance(ground: CutGround) -> Mounted:
    return new_instance(ground)


def test_the_live_image_is_the_snapshot_and_what_was_since_is_kept(instance: Mounted) -> None:
    contents = {name: kept(instance, name, number * MIB) for number, name in enumerate("abc")}
    since = instance.live_file.read_bytes()
    told = reverted(instance, "b")
    assert told["written_bytes"] == 2 * MIB
    assert instance.live_file.read_bytes() == contents["b"] == instance.image.read_bytes()
    assert names(instance) == ["a", "b", "c", told["kept"]]
    assert file_of(instance, told["kept"]).read_bytes() == since
    for name, content in contents.items():
        assert file_of(instance, name).read_bytes() == content


def test_to_what_was_since_it_can_be_taken_back(instance: Mounted) -> None:
    kept(instance, "a", 0)
    since = instance.live_file.read_bytes()
    told = reverted(instance, "a")
    reverted(instance, told["kept"], "--discard", "--force")
    assert instance.live_file.read_bytes() == since


def test_with_discard_no_snapshot_is_taken(instance: Mounted) -> None:
    content = kept(instance, "a", 0)
    assert reverted(instance, "a", "--discard", "--force")["kept"] is None
    assert instance.live_file.read_bytes() == content
    assert names(instance) == ["a"]


def test_discard_has_to_be_meant(instance: Mounted) -> None:
    kept(instance, "a", 0)
    since = instance.live_file.read_bytes()
    done = snapfs("revert", instance.live, "a", "--discard")
    assert done.returncode == 2
    assert "say --force" in done.stderr
    assert instance.live_file.read_bytes() == since


def test_one_without_a_name_gets_one(instance: Mounted) -> None:
    content = instance.live_file.read_bytes()
    write(instance, 0)
    told = reverted(instance, instance.status()["snapshots"][-1]["id"])
    assert told["name"].startswith("taken-")
    assert names(instance) == [told["name"], told["kept"]]
    assert file_of(instance, told["name"]).read_bytes() == content == instance.live_file.read_bytes()


def test_with_discard_one_without_a_name_stays_so(instance: Mounted) -> None:
    content = instance.live_file.read_bytes()
    write(instance, 0)
    reverted(instance, instance.status()["snapshots"][-1]["id"], "--discard", "--force")
    assert instance.live_file.read_bytes() == content
    assert names(instance) == [""]


def test_a_filesystem_is_what_it_was(ground: CutGround) -> None:
    instance = ground.mounted(ground.made("ext4", 64 * MIB))
    point = ground.filesystem(instance)
    (point / "file").write_bytes(first := os.urandom(8 * MIB))
    cut(instance.live, "--name", "with")
    (point / "file").unlink()
    (point / "other").write_bytes(other := os.urandom(24 * MIB))
    assert "is in use: loop device" in refused(instance, "with")
    run("umount", point)
    ground.drop_loop(ground._loops[-1])
    told = reverted(instance, "with")
    run("e2fsck", "-fp", instance.live_file)
    point = ground.filesystem(instance)
    assert (point / "file").read_bytes() == first
    assert not (point / "other").exists()
    run("umount", point)
    ground.drop_loop(ground._loops[-1])
    copy = ground.path / "copy.img"
    copy.write_bytes(file_of(instance, told["kept"]).read_bytes())
    since = ground.mount(ground.loop(copy, "--read-only"), "-o", "ro,noload", name="since")
    assert (since / "other").read_bytes() == other


def test_it_is_refused_while_anybody_has_the_live_file_open(instance: Mounted) -> None:
    kept(instance, "a", 0)
    with instance.live_file.open("rb"):
        assert "has" in (said := refused(instance, "a"))
        assert "nothing was changed" in said
    assert names(instance) == ["a"]
    reverted(instance, "a")


def test_a_snapshot_that_was_released_is_refused_before_anything_is_written(instance: Mounted) -> None:
    kept(instance, "a", 0)
    since = instance.live_file.read_bytes()
    assert snapfs("release", instance.live, "--all").returncode == 0
    assert "were released" in refused(instance, "a", "--discard", "--force")
    assert instance.live_file.read_bytes() == since


def test_a_refused_one_leaves_no_snapshot_and_ends_none(instance: Mounted) -> None:
    kept(instance, "a", 0)
    assert snapfs("release", instance.live, "--all").returncode == 0
    cut(instance.live)
    before = instance.status()["snapshots"]
    assert "were released" in refused(instance, "a")
    assert [one["id"] for one in instance.status()["snapshots"]] == [one["id"] for one in before]


_WITHOUT_SECONDS = """
import sys, time
time.strftime = lambda *_: "before-revert-TIME"
from snapfs.cli import main
main()
"""


def test_two_within_a_second_have_names_of_their_own(instance: Mounted) -> None:
    kept(instance, "a", 0)
    for _ in range(2):
        done = snapfs("revert", instance.live, "a", program=(sys.executable, "-c", _WITHOUT_SECONDS))
        assert done.returncode == 0, done.stderr
    assert names(instance) == ["a", "before-revert-TIME", "before-revert-TIME-2"]


def test_what_is_about_to_be_reverted_to_is_not_deleted(ground: CutGround, instance: Mounted) -> None:
    content = kept(instance, "a", 0)
    process = stopping_revert(ground, instance, "revert", "--discard", "--force")
    done = snapfs("delete", instance.live, "a")
    assert done.returncode == 1
    assert "is about to be reverted to that snapshot" in done.stderr
    _, said = process.communicate("\n", timeout=60)
    assert process.returncode == 0, said
    assert instance.live_file.read_bytes() == content
    assert snapfs("delete", instance.live, "a").returncode == 0
