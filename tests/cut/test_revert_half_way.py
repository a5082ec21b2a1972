"""`snapfs revert` that has stopped for want of room: what is there meanwhile, and the ways on and back."""

from __future__ import annotations

import errno
import os

import pytest
from cut_rig import CutGround, snapfs
from mounted import Mounted
from revert_rig import SIZE, file_of, half_way_back, names, new_instance, reverted, stopped, stopping_revert, write


@pytest.fixture
def instance(ground: CutGround) -> Mounted:
    return new_instance(ground)


@pytest.mark.parametrize("policy", ["break-snapshot", "break-oldest", "break-write", "wait"])
def test_without_room_it_stops_until_there_is_some(ground: CutGround, policy: str) -> None:
    instance = ground.mounted(ground.image(os.urandom(SIZE)), "--protect", "all", "--on-overflow", policy)
    instance.expect_log("has stopped|% of its limit")
    content, said = stopped(instance)
    assert "no room" in said
    assert {one["state"] for one in instance.status()["snapshots"]} == {"active"}
    assert file_of(instance, "a").read_bytes() == content
    assert snapfs("limit", instance.live, "none").returncode == 0
    assert reverted(instance, "a")["kept"] is None
    assert instance.live_file.read_bytes() == content


@pytest.fixture
def half_way(instance: Mounted) -> tuple[Mounted, bytes]:
    return half_way_back(instance)


def test_half_way_the_live_file_is_closed_and_status_says_so(half_way: tuple[Mounted, bytes]) -> None:
    instance, _ = half_way
    with pytest.raises(OSError, match="busy") as error:
        instance.live_file.open("rb")
    assert error.value.errno == errno.EBUSY
    status = instance.status()
    assert status["revert"]["name"] == "a"
    assert not status["revert"]["is_running"]
    assert "half-way back to a" in status["error"]


def test_half_way_the_way_back_is_open(half_way: tuple[Mounted, bytes]) -> None:
    instance, _ = half_way
    since = file_of(instance, names(instance)[-1]).read_bytes()
    reverted(instance, names(instance)[-1])
    assert instance.live_file.read_bytes() == since
    assert instance.status()["revert"] is None


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("snapshot",), "on its way back to a"),
        (("delete", "a"), "half-way back to a"),
        (("release", "--all"), "half-way back to a"),
        (("umount",), "half-way back to a"),
    ],
)
def test_half_way_nothing_else_is_begun(half_way: tuple[Mounted, bytes], words: tuple[str, ...], what: str) -> None:
    instance, _ = half_way
    done = snapfs(words[0], instance.live, *words[1:])
    assert done.returncode == 1
    assert what in done.stderr
    assert snapfs("limit", instance.live, "none").returncode == 0
    reverted(instance, "a")


def test_one_that_is_to_go_on_is_refused_when_somebody_else_has_ended_it(
    ground: CutGround, half_way: tuple[Mounted, bytes]
) -> None:
    instance, _ = half_way
    process = stopping_revert(ground, instance, "close-live")
    assert snapfs("limit", instance.live, "none").returncode == 0
    reverted(instance, "a")
    write(instance, 0)
    since = instance.live_file.read_bytes()
    _, said = process.communicate("\n", timeout=60)
    assert process.returncode == 1
    assert "by now that has come to its end; nothing was done" in said
    assert instance.live_file.read_bytes() == since


def test_half_way_it_is_unmounted_with_force_and_the_next_mount_says_so(half_way: tuple[Mounted, bytes]) -> None:
    instance, content = half_way
    done = snapfs("umount", instance.live, "--force")
    assert done.returncode == 4
    assert "is kept: mount it again" in done.stderr
    instance.await_end()
    assert "half-way back to a" in instance.mount().stderr
    with pytest.raises(OSError, match="busy"):
        instance.live_file.open("rb")
    reverted(instance, "a")
    assert instance.live_file.read_bytes() == content
