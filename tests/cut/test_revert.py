"""`snapfs revert`: the live image becomes a snapshot again, and what was since is one too."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cut_rig import MIB, SNAPFS, CutGround, cut, run, snapfs
from mounted import Mounted, wait_until

from cow.disk.files import Files
from cow.disk.revert_note import write_revert_note
from tests.machine import MNT_DETACH, unmount

SIZE = 8 * MIB


@pytest.fixture
def instance(ground: CutGround) -> Mounted:
    return ground.mounted(ground.image(os.urandom(SIZE)), "--protect", "all")


def write(instance: Mounted, offset: int, length: int = MIB) -> None:
    with instance.live_file.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), os.urandom(length), offset)
        os.fsync(file.fileno())


def kept(instance: Mounted, name: str, offset: int) -> bytes:
    """A snapshot with this name, after which something is written; what it holds."""
    cut(instance.live, "--name", name)
    content = instance.live_file.read_bytes()
    write(instance, offset)
    return content


def reverted(instance: Mounted, *words: str) -> dict[str, Any]:
    done = snapfs("revert", instance.live, *words, "--json")
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def refused(instance: Mounted, *words: str) -> str:
    """With a sentence, which is returned."""
    done = snapfs("revert", instance.live, *words)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def names(instance: Mounted) -> list[str]:
    return [one["name"] for one in instance.status()["snapshots"]]


def file_of(instance: Mounted, name: str) -> Path:
    return instance.snap / ".snapshots" / name / instance.image.name


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


def stopping_revert(ground: CutGround, instance: Mounted, at: str, *words: str) -> subprocess.Popen[str]:
    """A revert to "a" that stops before the server is asked for that, until it is told to go on."""
    stopping = (sys.executable, Path(__file__).with_name("stopping_cut.py"), at, "renewed")
    process = ground.started(*stopping, "revert", instance.live, "a", *words)
    assert process.stdout is not None
    assert process.stdout.readline() == "stopped\n"
    return process


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


# --- one that stops ------------------------------------------------------------------------------------------


def stopped(instance: Mounted) -> tuple[bytes, str]:
    """A revert to "a" that finds no room; what "a" holds, and the sentence."""
    content = kept(instance, "a", 0)
    for offset in range(1, 8):
        write(instance, offset * MIB)
    assert snapfs("limit", instance.live, "12M").returncode == 0
    return content, refused(instance, "a")


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
    """A revert to "a" has stopped; with what "a" holds."""
    instance.expect_log("has stopped|% of its limit")
    return instance, stopped(instance)[0]


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


# --- one that is killed --------------------------------------------------------------------------------------

_DYING = Path(__file__).with_name("dying_server.py")


def let_go_of_dead(instance: Mounted) -> None:
    for view in (instance.live, instance.snap):
        unmount(view, MNT_DETACH)


def check_goes_on(instance: Mounted, content: bytes) -> None:
    """The next mount says how it is, and it can be brought to its end."""
    assert "half-way back to a" in instance.mount().stderr
    with pytest.raises(OSError, match="busy"):
        instance.live_file.open("rb")
    reverted(instance, "a")
    assert instance.live_file.read_bytes() == content == file_of(instance, "a").read_bytes()


def dying(ground: CutGround, *moment: str) -> tuple[Mounted, bytes]:
    """A live server that is killed by a revert to "a", at that moment; with what "a" holds."""
    instance = ground.instance(ground.image(os.urandom(SIZE)), "--protect", "all")
    instance.expect_log("the live server was killed")
    armed = ground.path / "armed"
    instance.program = (sys.executable, _DYING, armed, "live", *moment)
    instance.mount()
    content = kept(instance, "a", 0)
    armed.touch()
    assert "is just ending" in refused(instance, "a")
    instance.await_end()
    return instance, content


def test_a_live_server_killed_when_it_has_begun(ground: CutGround) -> None:
    instance, content = dying(ground, "after", "rename", "/reverting.new")
    check_goes_on(instance, content)
    since = names(instance)[-1]
    assert since.startswith("before-revert-")
    reverted(instance, since, "--discard", "--force")
    assert instance.live_file.read_bytes() != content


def test_a_live_server_killed_before_it_began(ground: CutGround) -> None:
    instance, content = dying(ground, "before", "rename", "/reverting.new")
    assert instance.mount().stderr == ""
    assert instance.live_file.read_bytes() != content == file_of(instance, "a").read_bytes()


def test_everything_killed_half_way(half_way: tuple[Mounted, bytes]) -> None:
    instance, content = half_way
    instance.kill()
    let_go_of_dead(instance)
    check_goes_on(instance, content)


def test_half_way_a_plain_umount_keeps_the_store(half_way: tuple[Mounted, bytes]) -> None:
    instance, content = half_way
    unmount(instance.live)
    instance.await_end()
    check_goes_on(instance, content)


def test_without_its_command_it_comes_to_its_end(ground: CutGround) -> None:
    instance = ground.mounted(ground.image(os.urandom(64 * MIB)), "--protect", "all")
    content = kept(instance, "a", 0)
    for offset in range(0, 64 * MIB, 8 * MIB):
        write(instance, offset, 8 * MIB)
    process = ground.started(SNAPFS, "revert", instance.live, "a")
    wait_until(lambda: instance.status()["revert"] is not None or process.poll() is not None, what="the revert")
    process.kill()
    wait_until(lambda: instance.status()["revert"] is None, what="its end", timeout_s=60)
    wait_until(lambda: can_be_opened(instance), what="the live file")
    assert instance.live_file.read_bytes() == content


def can_be_opened(instance: Mounted) -> bool:
    try:
        instance.live_file.open("rb").close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("command", ["mount", "backup"])
def test_an_image_that_is_half_way_back_does_not_pass_for_a_whole_one(ground: CutGround, command: str) -> None:
    image, other = ground.image(MIB), ground.path / "other"
    store = image.with_name("disk.img.snapfs")
    store.mkdir()
    write_revert_note(store, bytes(range(16)), Files())
    for name in ("live", "snap"):
        (ground.path / name).mkdir()
    words = {"mount": (ground.path / "live", ground.path / "snap", "--store", other), "backup": (other,)}[command]
    done = snapfs(command, image, *words)
    assert done.returncode == 1
    assert f"{image} is half-way back to a snapshot" in done.stderr
    assert not other.exists()
