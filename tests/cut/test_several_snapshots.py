"""Several snapshots through the command line: kept by a name, listed, read in the view, deleted, carried on."""

from __future__ import annotations

import errno
import json
import os
import threading
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


def test_the_list_says_what_each_alone_holds(instance: Mounted) -> None:
    for name in "ab":
        kept(instance, name, 0)
        write(instance, 2 * MIB if name == "b" else MIB)
    wait_until(lambda: instance.status()["buffer"]["staged_bytes"] == 0, what="the compactor")
    a, b = snapshots(instance)
    assert a["alone_bytes"] == a["stored_bytes"]
    assert b["alone_bytes"] * 2 == pytest.approx(b["stored_bytes"], rel=0.01)


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
        (("snapshot", "--name", ""), 2, "cannot be called ''"),
        (("delete", "none"), 1, "has no snapshot none"),
    ],
)
def test_what_cannot_be_is_refused(instance: Mounted, words: tuple[str, ...], code: int, what: str) -> None:
    cut(instance.live, "--name", "a")
    cut(instance.live, "--name", "last")
    done = snapfs(words[0], instance.live, *words[1:])
    assert (done.returncode, done.stdout) == (code, "")
    assert what in done.stderr
    assert names(instance) == ["a", "last"]


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


@pytest.mark.parametrize("durability", ["process", "power"])
def test_with_break_oldest_the_oldest_gives_way_and_the_others_stay(ground: CutGround, durability: str) -> None:
    options = (
        "--protect",
        "all",
        "--buffer-limit",
        "3M",
        "--on-overflow",
        "break-oldest",
        "--durability",
        durability,
    )
    instance = ground.mounted(ground.image(os.urandom(SIZE)), *options)
    instance.expect_log("the oldest snapshot .* is lost|% of its limit")
    contents = {name: kept(instance, name, number * MIB) for number, name in enumerate("abcde")}
    states = {one["name"]: one["state"] for one in snapshots(instance)}
    assert states == {"a": "overflowed", "b": "overflowed", "c": "active", "d": "active", "e": "active"}
    for name in "cde":
        assert file_of(instance, name).read_bytes() == contents[name]
    with pytest.raises(OSError, match="Input/output"):
        file_of(instance, "a").read_bytes()
    delete(instance, "a", "b")
    assert names(instance) == ["c", "d", "e"]


def test_with_break_oldest_a_full_disk_costs_the_oldest(ground: CutGround) -> None:
    disk = ground.made("ext4", 144 * MIB, "store.img")
    store = ground.mount(ground.loop(disk), name="disk") / "store"
    options = ("--protect", "all", "--on-overflow", "break-oldest", "--store", store)
    instance = ground.mounted(ground.image(os.urandom(32 * MIB)), *options)
    instance.expect_log("the oldest snapshot .* is lost|cannot be written|could not be (emptied|written out)")
    for name in "abcde":
        cut(instance.live, "--name", name)
        content = instance.live_file.read_bytes()
        with instance.live_file.open("r+b", buffering=0) as file:
            for offset in range(0, 28 * MIB, MIB):
                os.pwrite(file.fileno(), os.urandom(MIB), offset)
            os.fsync(file.fileno())
    states = [one["state"] for one in snapshots(instance)]
    assert states[0] == "overflowed"
    assert states[-1] == "active"
    assert instance.snap_file.read_bytes() == content


def test_the_map_of_an_older_one_stays_what_it_was(ground: CutGround) -> None:
    """A block that was free then is zeros in it, and one that was used is not, whatever they are later."""
    instance = ground.mounted(ground.made("ext4", 64 * MIB))
    point = ground.filesystem(instance)
    (point / "file").write_bytes(os.urandom(8 * MIB))
    cut(instance.live, "--name", "with")
    wait_until(lambda: instance.status()["snapshot"]["map"] == "ready", what="the map")
    before = status_of(instance, "with")
    (point / "file").unlink()
    cut(instance.live, "--name", "without")
    (point / "other").write_bytes(os.urandom(24 * MIB))
    run("sync", "-f", point)
    after = status_of(instance, "with")
    assert (after["map"], after["used_blocks"]) == ("ready", before["used_blocks"])
    assert after["regions"] == before["regions"]
    assert after["freeze_ms"] == before["freeze_ms"]
    copy = ground.path / "copy.img"
    done = snapfs("backup", instance.live, copy, "--snapshot", "with")
    assert done.returncode == 0, done.stderr
    assert copy.read_bytes() == file_of(instance, "with").read_bytes()
    found = json.loads(snapfs("map", instance.live, "--snapshot", "with", "--json").stdout)
    assert sum(one["length"] for one in found["extents"] if one["data"]) == after["used_blocks"] * 4096


def test_a_map_without_a_free_block_stays_too(ground: CutGround) -> None:
    instance = ground.mounted(ground.image(os.urandom(MIB)))
    cut(instance.live, "--name", "mon")
    wait_until(lambda: instance.status()["snapshot"]["map"] == "ready", what="the map")
    before = status_of(instance, "mon")
    cut(instance.live)
    after = status_of(instance, "mon")
    assert (after["map"], after["regions"], after["used_blocks"]) == ("ready", before["regions"], 256)


def test_without_its_regions_every_block_counts_as_used(ground: CutGround) -> None:
    instance = ground.mounted(ground.made("ext4", 64 * MIB))
    cut(instance.live, "--name", "mon")
    wait_until(lambda: instance.status()["snapshot"]["map"] == "ready", what="the map")
    cut(instance.live)
    (noted,) = instance.store.glob("cut-*2/regions.json")
    noted.unlink()
    found = status_of(instance, "mon")
    assert (found["map"], found["regions"]) == ("none", [])
    extents = json.loads(snapfs("map", instance.live, "--snapshot", "mon", "--json").stdout)["extents"]
    assert extents == [{"start": 0, "length": 64 * MIB, "data": True}]


def status_of(instance: Mounted, name: str) -> dict[str, Any]:
    done = snapfs("status", instance.live, "--snapshot", name, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["snapshot"]
    return found


def test_a_cut_does_not_wait_for_writes_that_wait_for_room(ground: CutGround) -> None:
    options = ("--protect", "all", "--buffer-limit", "1M", "--on-overflow", "wait", "--cache", "writethrough")
    instance = ground.mounted(ground.image(os.urandom(SIZE)), *options)
    instance.expect_log("side buffer")
    writer = threading.Thread(target=lambda: [write(instance, offset) for offset in (0, MIB)], daemon=True)
    writer.start()
    wait_until(lambda: instance.status()["buffer"]["writes_wait"], what="a write that waits")
    try:
        done = snapfs("snapshot", instance.live, "--no-freeze")
        assert done.returncode == 1
        assert "wait for room in the side buffer" in done.stderr
    finally:
        assert snapfs("limit", instance.live, "none").returncode == 0
        writer.join(30)
    cut(instance.live)
