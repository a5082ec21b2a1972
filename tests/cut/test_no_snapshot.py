"""The newest snapshot deleted, and an image without any: what the views show, and what commands say."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from cut_rig import MIB, CutGround, cut, snapfs
from mounted import Mounted, wait_until

SIZE = 8 * MIB


@pytest.fixture
def instance(ground: CutGround) -> Mounted:
    return ground.mounted(ground.image(os.urandom(SIZE)), "--protect", "all")


def id_of_newest(instance: Mounted) -> str:
    snapshot_id: str = json.loads(snapfs("list", instance.live, "--json").stdout)["snapshots"][-1]["id"]
    return snapshot_id


def delete(instance: Mounted, which: str) -> None:
    done = snapfs("delete", instance.live, which)
    assert done.returncode == 0, done.stderr


def write(instance: Mounted, offset: int) -> None:
    with instance.live_file.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), os.urandom(MIB), offset)
        os.fsync(file.fileno())


def file_of(instance: Mounted, name: str) -> Path:
    return instance.snap / ".snapshots" / name / instance.image.name


def test_the_one_before_is_shown_when_the_newest_is_deleted(instance: Mounted) -> None:
    cut(instance.live, "--name", "a")
    content = instance.live_file.read_bytes()
    write(instance, 0)
    cut(instance.live)
    write(instance, MIB)
    delete(instance, id_of_newest(instance))
    assert instance.snap_file.read_bytes() == content
    write(instance, 2 * MIB)
    assert instance.snap_file.read_bytes() == file_of(instance, "a").read_bytes() == content


def test_without_any_the_snapshot_view_is_empty(instance: Mounted) -> None:
    with instance.snap_file.open("rb", buffering=0) as file:
        file.read(16)
        delete(instance, id_of_newest(instance))
        assert os.listdir(instance.snap) == []
        assert not instance.snap_file.exists()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with pytest.raises(OSError, match="Stale") as error:
            os.pread(file.fileno(), 16, MIB)
    assert error.value.errno == errno.ESTALE


def test_without_any_a_write_costs_nothing_until_the_next_cut(instance: Mounted) -> None:
    write(instance, 0)
    delete(instance, id_of_newest(instance))
    write(instance, MIB)
    wait_until(lambda: instance.status()["buffer"]["stored_bytes"] == 0, what="the end of what was preserved")
    content = instance.live_file.read_bytes()
    cut(instance.live)
    write(instance, 2 * MIB)
    assert instance.snap_file.read_bytes() == content
    assert instance.status()["buffer"]["stored_bytes"] > 0


def test_a_mount_may_begin_without_one(ground: CutGround) -> None:
    instance = ground.mounted(ground.image(os.urandom(SIZE)), "--no-snapshot", "--protect", "all")
    assert os.listdir(instance.snap) == []
    write(instance, 0)
    assert instance.status()["buffer"]["stored_bytes"] == 0
    content = instance.live_file.read_bytes()
    cut(instance.live, "--name", "first")
    write(instance, MIB)
    assert instance.snap_file.read_bytes() == content


def test_a_mount_without_one_says_so(ground: CutGround) -> None:
    image, live, snap = ground.image(os.urandom(SIZE)), ground.path / "l", ground.path / "s"
    live.mkdir()
    snap.mkdir()
    done = snapfs("mount", image, live, snap, "--no-snapshot")
    try:
        assert "(none yet)" in done.stdout
    finally:
        snapfs("umount", live)


def test_a_kept_store_without_one_begins_with_a_new_one(ground: CutGround) -> None:
    store = ground.path / "store"
    instance = ground.mounted(ground.image(os.urandom(SIZE)), "--store", store, "--protect", "all")
    delete(instance, id_of_newest(instance))
    write(instance, 0)
    instance.umount()
    instance.mount()
    content = instance.live_file.read_bytes()
    write(instance, MIB)
    assert instance.snap_file.read_bytes() == content


def test_a_kept_store_whose_newest_was_deleted_carries_the_others_on(ground: CutGround) -> None:
    store = ground.path / "store"
    instance = ground.mounted(ground.image(os.urandom(SIZE)), "--store", store, "--protect", "all")
    cut(instance.live, "--name", "a")
    content = instance.live_file.read_bytes()
    write(instance, 0)
    cut(instance.live, "--name", "b")
    write(instance, MIB)
    delete(instance, "b")
    instance.umount()
    instance.mount()
    assert instance.snap_file.read_bytes() == content
    write(instance, 2 * MIB)
    assert instance.snap_file.read_bytes() == content
    cut(instance.live, "--name", "c")
    assert file_of(instance, "a").read_bytes() == content


@pytest.mark.parametrize(
    "words", [("backup", "copy.img"), ("map",), ("diff",), ("browse", "files"), ("release", "--all")]
)
def test_commands_that_need_one_say_that_there_is_none(instance: Mounted, words: tuple[str, ...]) -> None:
    delete(instance, id_of_newest(instance))
    more = [instance.live.parent / word if word in ("copy.img", "files") else word for word in words[1:]]
    (instance.live.parent / "files").mkdir()
    done = snapfs(words[0], instance.live, *more)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"snapfs: {instance.image} has no snapshot now; take one (snapfs snapshot).\n"


def test_status_and_list_show_that_there_is_none(instance: Mounted) -> None:
    delete(instance, id_of_newest(instance))
    status = instance.status()
    assert (status["snapshot"]["state"], status["snapshot"]["id"], status["snapshots"]) == ("none", None, [])
    done = snapfs("status", instance.live)
    assert (done.returncode, "none; take one with snapfs snapshot" in done.stdout) == (0, True)
    assert snapfs("list", instance.live).stdout == "There is no snapshot.\n"
