"""`snapfs revert` whose command or server is killed, or that is unmounted half-way: it is brought to its end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from cut_rig import MIB, SNAPFS, CutGround, snapfs
from mounted import Mounted, wait_until
from revert_rig import SIZE, file_of, half_way_back, kept, names, new_instance, refused, reverted, write

from cow.disk.files import Files
from cow.disk.revert_note import write_revert_note
from tests.machine import MNT_DETACH, unmount


@pytest.fixture
def instance(ground: CutGround) -> Mounted:
    return new_instance(ground)


@pytest.fixture
def half_way(instance: Mounted) -> tuple[Mounted, bytes]:
    return half_way_back(instance)


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
