"""Several snapshots through the command line: kept by a name, listed, read in the view, deleted, carried on."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from cut_rig import MIB, CutGround, cut, run, snapfs
from mounted import Mounted, wait_until

SIZE = 8 * MIB


@pytest.fixture
def instance(ground: CutGround) -> Mounted:
    return ground.mounted(ground.image(os.urandom(SIZE)), "--protect", "all")


def snapshots(instance: Mounted) -> list[dict[str, Any]]:
    done = snapfs("list", instance.live, "--json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["snapshots"]
    return found


def names(instance: Mounted) -> list[str]:
    return [one["name"] for one in snapshots(instance)]


def file_of(instance: Mounted, name: str) -> Path:
    return instance.snap / ".snapshots" / name / instance.image.name


def write(instance: Mounted, offset: int) -> None:
    with instance.live_file.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), os.urandom(MIB), offset)
        os.fsync(file.fileno())


def kept(instance: Mounted, name: str, offset: int) -> bytes:
    """A snapshot with this name, after which something is written; what it holds."""
    cut(instance.live, "--name", name)
    content = instance.live_file.read_bytes()
    write(instance, offset)
    return content


def delete(instance: Mounted, *which: str) -> None:
    done = snapfs("delete", instance.live, *which)
    assert done.returncode == 0, done.stderr


def await_merged(instance: Mounted, count: int) -> None:
    wait_until(lambda: len(list(instance.store.glob("cut-*"))) == count, what="the end of what was deleted")


def test_each_is_there_under_its_name(instance: Mounted) -> None:
    contents = {name: kept(instance, name, number * MIB) for number, name in enumerate(("mon", "tue", "wed"))}
    cut(instance.live)
    assert names(instance) == ["mon", "tue", "wed", ""]
    for name, content in contents.items():
        assert file_of(instance, name).read_bytes() == content
    assert sorted(os.listdir(instance.snap / ".snapshots")) == ["mon", "tue", "wed"]
    assert os.listdir(instance.snap) == [instance.image.name]
    assert instance.snap_file.read_bytes() == instance.live_file.read_bytes()


def test_one_without_a_name_is_replaced_by_the_next(instance: Mounted) -> None:
    content = kept(instance, "mon", 0)
    for offset in (MIB, 2 * MIB):
        cut(instance.live)
        write(instance, offset)
    assert names(instance) == ["mon", ""]
    await_merged(instance, 2)
    assert file_of(instance, "mon").read_bytes() == content


def test_deleted_in_any_order_the_others_stay(instance: Mounted) -> None:
    contents = {name: kept(instance, name, number * MIB) for number, name in enumerate("abcd")}
    cut(instance.live)
    left = 5
    for name in "bdac":
        with file_of(instance, name).open("rb", buffering=0) as file:
            assert file.read(16) == contents.pop(name)[:16]
            delete(instance, name)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            with pytest.raises(OSError, match="Stale") as error:
                os.pread(file.fileno(), 16, MIB)
            assert error.value.errno == errno.ESTALE
        assert not file_of(instance, name).exists()
        left -= 1
        await_merged(instance, left)
        for other, content in contents.items():
            assert file_of(instance, other).read_bytes() == content
    assert names(instance) == [""]


def test_several_are_deleted_at_once_by_name_or_id(instance: Mounted) -> None:
    for number, name in enumerate("ab"):
        kept(instance, name, number * MIB)
    cut(instance.live)
    delete(instance, "a", snapshots(instance)[1]["id"])
    assert names(instance) == [""]


def test_what_is_deleted_gives_its_room_back(instance: Mounted) -> None:
    kept(instance, "a", 0)
    kept(instance, "b", 0)
    cut(instance.live)
    delete(instance, "a", "b")
    await_merged(instance, 1)
    wait_until(lambda: not list((instance.store / "segments").iterdir()), what="the end of the records")


def test_all_of_them_are_carried_on(ground: CutGround) -> None:
    store = ground.path / "store"
    instance = ground.mounted(ground.image(os.urandom(SIZE)), "--store", store, "--protect", "all")
    contents = {name: kept(instance, name, number * MIB) for number, name in enumerate("ab")}
    instance.umount()
    instance.mount()
    for name, content in contents.items():
        assert file_of(instance, name).read_bytes() == content
    assert instance.snap_file.read_bytes() == contents["b"]
    write(instance, 3 * MIB)
    instance.kill()
    run("umount", "-l", instance.live)
    run("umount", "-l", instance.snap)
    instance.mount()
    assert file_of(instance, "a").read_bytes() == contents["a"]
    assert instance.snap_file.read_bytes() == contents["b"]


def test_they_outlive_a_snapshot_server_and_a_compactor(instance: Mounted) -> None:
    content = kept(instance, "a", 0)
    cut(instance.live)
    instance.expect_log("snapshot|compactor")
    for name in ("snapshot", "compactor"):
        instance.kill(name)
    wait_until(lambda: _reads(file_of(instance, "a")) == content, what="the snapshot server", timeout_s=30)
    delete(instance, "a")
    await_merged(instance, 1)


def _reads(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_damage_is_said_of_those_that_meet_it(instance: Mounted) -> None:
    contents = {name: kept(instance, name, number * MIB) for number, name in enumerate("abc")}
    cut(instance.live)
    wait_until(lambda: not instance.status()["buffer"]["staged_bytes"], what="the records")
    (segment,) = (instance.store / "segments").glob("*-00000003")
    with segment.open("r+b") as file:
        file.seek(5000)
        file.write(bytes(64))
    instance.expect_log("the store is damaged, and with it the snapshot [ab]: ")
    for name in "ab":
        with pytest.raises(OSError, match="Input/output error"):
            file_of(instance, name).read_bytes()
    assert file_of(instance, "c").read_bytes() == contents["c"]
    states = {"a": "damaged", "b": "damaged", "c": "active", "": "active"}
    wait_until(lambda: {one["name"]: one["state"] for one in snapshots(instance)} == states, what="the states")


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (("snapshot", "--name", "a"), 1, "There is a snapshot a already"),
        (("snapshot", "--name", "../a"), 2, "cannot be called '../a'"),
        (("snapshot", "--name", "9446626d-c85b-4e28-b49f-40e50b06529a"), 2, "which is how ids are written"),
        (("snapshot", "--name", "."), 2, "cannot be called '.'"),
        (("delete", "none"), 1, "has no snapshot none"),
        (("delete", "newest"), 1, "The newest snapshot is the one that is shown"),
    ],
)
def test_what_cannot_be_is_refused(instance: Mounted, words: tuple[str, ...], code: int, what: str) -> None:
    cut(instance.live, "--name", "a")
    cut(instance.live, "--name", "newest")
    done = snapfs(words[0], instance.live, *words[1:])
    assert (done.returncode, done.stdout) == (code, "")
    assert what in done.stderr
    assert names(instance) == ["a", "newest"]


def test_a_used_block_of_an_older_one_is_whole_whatever_is_free_later(ground: CutGround) -> None:
    instance = ground.mounted(ground.made("ext4", 64 * MIB))
    point = ground.filesystem(instance)
    (point / "file").write_bytes(expected := os.urandom(8 * MIB))
    cut(instance.live, "--name", "with")
    (point / "file").unlink()
    cut(instance.live, "--name", "without")
    wait_until(lambda: instance.status()["snapshot"]["map"] == "ready", what="the map")
    (point / "other").write_bytes(os.urandom(24 * MIB))
    run("umount", point)
    copy = ground.path / "copy.img"
    copy.write_bytes(file_of(instance, "with").read_bytes())
    run("e2fsck", "-fn", copy)
    with_it = ground.mount(ground.loop(copy, "--read-only"), "-o", "ro,noload", name="with")
    assert (with_it / "file").read_bytes() == expected
