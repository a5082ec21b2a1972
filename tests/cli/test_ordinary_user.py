"""An ordinary user with an image and mount points of his own: everything works, with fusermount3."""

from __future__ import annotations

import hashlib
import os
import subprocess

import pytest
from command_line import NOBODY, Bench, Room, processes_about, snapfs, wait_until


@pytest.fixture
def before(room: Room) -> tuple[str, ...]:
    """What starts a command as the user."""
    return room.before(NOBODY)


def overwrite(bench: Bench, room: Room, text: str) -> None:
    script = f"printf '{text}' | dd of={bench.live_file} conv=notrunc,fsync status=none"
    room.run("sh", "-c", script, user=NOBODY)


def test_mount_use_and_umount(user_bench: Bench, room: Room, before: tuple[str, ...]) -> None:
    bench, frozen = user_bench, user_bench.image.read_bytes()
    done = bench.mount(before=before).ok()
    assert str(bench.snap_file) in done.out
    overwrite(bench, room, "new")
    room.run("sh", "-c", f"cmp -n {len(frozen)} {bench.snap_file} {bench.live_file} && exit 1; exit 0", user=NOBODY)
    snap = room.run("sha256sum", bench.snap_file, user=NOBODY)
    assert snap.split()[0] == _sha256(frozen)
    status = bench.status(before=before)
    assert status["snapshot"]["state"] == "active"
    assert status["snapshot"]["changed_blocks"] == 1
    snapfs("limit", bench.live, "1G", before=before).ok()
    bench.umount(before=before).ok()
    assert bench.image.read_bytes() == b"new" + frozen[3:]
    assert sorted(os.listdir(bench.path)) == ["disk.img", "live", "snap"]


def test_status_without_a_path_lists_the_users_instances(
    user_bench: Bench, room: Room, before: tuple[str, ...]
) -> None:
    with user_bench.mounted(before=before):
        assert str(user_bench.live) in snapfs("status", before=before).ok().out


def test_only_root_browses(user_bench: Bench, room: Room, before: tuple[str, ...]) -> None:
    with user_bench.mounted(before=before):
        snapfs("browse", user_bench.live, user_bench.path, before=before).refuses(1, "Only root may mount")
        snapfs("browse", "--end", user_bench.path, before=before).refuses(1, "Only root may unmount")


def test_root_cannot_browse_what_only_its_user_may_see(
    user_bench: Bench, room: Room, before: tuple[str, ...]
) -> None:
    place = user_bench.path / "place"
    place.mkdir()
    with user_bench.mounted(before=before):
        done = snapfs("browse", user_bench.live, place, before=room.before())
        done.refuses(1, "cannot be opened by root: Permission denied; ", "-o allow_other")


def test_plain_fusermount_ends_the_instance(user_bench: Bench, room: Room, before: tuple[str, ...]) -> None:
    user_bench.mount(before=before).ok()
    room.run("fusermount3", "-u", user_bench.live, user=NOBODY)
    wait_until(lambda: not processes_about(user_bench.path))
    assert not user_bench.default_store.exists()


def test_a_kept_store_is_carried_on(user_bench: Bench, room: Room, before: tuple[str, ...]) -> None:
    bench, frozen = user_bench, user_bench.image.read_bytes()
    with bench.mounted("--store", bench.store, before=before):
        overwrite(bench, room, "new")
    with bench.mounted("--store", bench.store, before=before) as done:
        assert "Carrying on with the same snapshot" in done.out
        assert room.run("sha256sum", bench.snap_file, user=NOBODY).split()[0] == _sha256(frozen)


def test_a_killed_instance_is_carried_on(user_bench: Bench, room: Room, before: tuple[str, ...]) -> None:
    bench, frozen = user_bench, user_bench.image.read_bytes()
    bench.mount(before=before).ok()
    overwrite(bench, room, "new")
    for pid in processes_about(bench.path):
        os.kill(pid, 9)
    wait_until(lambda: not processes_about(bench.path))
    done = bench.mount(before=before).ok()
    assert "Carrying on with the same snapshot" in done.out
    assert room.run("sha256sum", bench.snap_file, user=NOBODY).split()[0] == _sha256(frozen)
    bench.umount(before=before).ok()


def test_a_busy_view_names_its_user(user_bench: Bench, room: Room, before: tuple[str, ...]) -> None:
    bench = user_bench
    bench.mount(before=before).ok()
    script = f"exec 3<{bench.live_file}; echo open; read line <&0"
    process = subprocess.Popen(
        [*before, "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    bench.umount(before=before).refuses(1, f"{bench.live} is in use", f"process {process.pid}")
    process.communicate("\n", timeout=30)
    bench.umount(before=before).ok()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
