"""Other users' mounts that say they are snapfs, and servers that do not answer: nobody is led astray or waits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from command_line import NOBODY, Bench, Done, Room, mount_points_below, processes_about, snapfs

# Of Python, on a busy machine.
START_S = 0.3
HOSTILE = Path(__file__).with_name("hostile_view.py")


@pytest.fixture
def evil(bench: Bench) -> Path:
    """A directory of the other user, with a mount point `view` in it."""
    path = bench.path / "evil"
    (path / "view").mkdir(parents=True)
    os.chown(path, NOBODY, NOBODY)
    os.chown(path / "view", NOBODY, NOBODY)
    return path


@contextmanager
def hostile_view(
    room: Room, evil: Path, image: Path, store: Path, status: dict[str, object] | None = None
) -> Iterator[None]:
    room.run("sh", "-c", "echo user_allow_other > /etc/fuse.conf")
    words = [*room.before(NOBODY), sys.executable, HOSTILE, evil / "view", image, store]
    environment = {**os.environ, "PYTHONPATH": str(HOSTILE.parents[2])}
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write("" if status is None else json.dumps(status))
        process.stdin.close()
        assert process.stdout.readline() == "serving\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        room.run("umount", "-l", evil / "view")
        room.run("sh", "-c", ": > /etc/fuse.conf")


def points_in(room: Room, bench: Bench) -> str:
    return room.run("grep", f"{bench.path}/", "/proc/self/mountinfo")


def test_a_users_mount_that_names_the_image_keeps_nobody_else_from_mounting_it(
    bench: Bench, room: Room, evil: Path
) -> None:
    with (
        hostile_view(room, evil, bench.image, evil / "store"),
        bench.mounted(before=room.before()),
    ):
        assert bench.status(before=room.before())["live"] == str(bench.live)


def test_a_users_mount_that_leads_to_roots_store_ends_nothing_of_root(bench: Bench, room: Room, evil: Path) -> None:
    with bench.mounted(before=room.before()):
        before = points_in(room, bench)
        with hostile_view(room, evil, Path("/srv/other.img"), bench.default_store):
            for command in ("umount", "status", "release"):
                words = [command, evil / "view", *(["--all"] if command == "release" else [])]
                snapfs(*words, before=room.before()).refuses(1, "belongs to another user")
        assert points_in(room, bench) == before
        assert bench.status(before=room.before())["snapshot"]["released_blocks"] == 0


def test_a_status_that_names_mounts_and_processes_of_others_harms_none(bench: Bench, room: Room, evil: Path) -> None:
    victim_point = bench.path / "victim"
    victim_point.mkdir()
    room.run("mount", "-t", "tmpfs", "none", victim_point)
    with subprocess.Popen(["sleep", "60"]) as victim:
        said = {"live": str(evil / "view"), "snap": str(victim_point), "image": "/x", "pid": victim.pid}
        with hostile_view(room, evil, Path("/srv/other.img"), evil / "store", said):
            snapfs("umount", evil / "view", before=room.before())
        assert victim.poll() is None
        victim.kill()
    assert str(victim_point) in points_in(room, bench)
    room.run("umount", victim_point)


def test_an_answer_that_is_none_hides_no_other_instance(bench: Bench, room: Room, evil: Path) -> None:
    said: dict[str, object] = {"snapshot": {"state": 1}}
    with (
        bench.mounted(before=room.before()),
        hostile_view(room, evil, Path("/srv/other.img"), evil / "store", said),
    ):
        done = snapfs("status", before=room.before())
        assert done.code == 4
        assert f"What the snapfs on {evil / 'store'} answers is not understood" in done.err
        assert str(bench.live) in done.out
        watched = snapfs("status", "--watch", "0.01", evil / "view", before=room.before())
        watched.refuses(1, "is not understood")


def test_a_user_deals_with_no_other_users_mount(bench: Bench, room: Room) -> None:
    with bench.mounted("-o", "allow_other", before=room.before()):
        for command in ("status", "umount"):
            snapfs(command, bench.live, before=room.before(NOBODY)).refuses(1, "belongs to another user")


def test_root_sees_and_ends_a_users_instance(user_bench: Bench, room: Room) -> None:
    bench = user_bench
    bench.mount(before=room.before(NOBODY)).ok()
    assert str(bench.live) in snapfs("status", before=room.before()).ok().out
    assert bench.status(before=room.before())["snapshot"]["state"] == "active"
    bench.umount(before=room.before()).ok()
    assert not bench.default_store.exists()


@contextmanager
def stopped(bench: Bench, name: str, *servers: str) -> Iterator[Bench]:
    """Another instance, mounted, whose servers of these names (of all, without any) do not run."""
    path = bench.path / name
    for directory in ("live", "snap"):
        (path / directory).mkdir(parents=True)
    other = Bench(path)
    other.image.write_bytes(os.urandom(1 << 20))
    with other.mounted():
        pids = [pid for pid in processes_about(path) if not servers or comm(pid) in servers]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield other
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def timed(*words: str | Path) -> tuple[Done, float]:
    began_s = time.monotonic()
    done = snapfs(*words)
    return done, time.monotonic() - began_s


@pytest.mark.alone
def test_a_stopped_instance_costs_every_command_seconds_and_hides_no_other(bench: Bench) -> None:
    with (
        bench.mounted(),
        stopped(bench, "half", "snapfs-live") as half,
        stopped(bench, "whole") as whole,
        stopped(bench, "unseen", "snapfs-snapshot") as unseen,
        ThreadPoolExecutor(16) as at_once,
    ):
        lines = [("status",), ("umount", whole.live), ("check", half.live), ("snapshot", unseen.live)]
        lines += [(name, half.live) for name in ("snapshot", "map")]
        lines += [("limit", half.live, "1G"), ("release", half.live, "--all")]
        lines += [("backup", one.live, one.path / "copy") for one in (half, unseen)]
        ended = dict(zip(lines, at_once.map(lambda words: timed(*words), lines), strict=True))
        status, _ = ended.pop(("status",))
        assert str(bench.live) in status.out
        assert (status.code, status.err.count("does not answer"), status.err.count("\n")) == (4, 2, 2)
        assert half.live in mount_points_below(bench.path)
        ended.pop(("check", half.live))[0].ok()  # the snapshot view knows where the store is
        # Its new cut was made, and is shown as soon as it goes on.
        ended.pop(("snapshot", unseen.live))[0].refuses(1, str(unseen.default_store / "log"))
        for words, (done, _) in ended.items():
            assert not (words[0] == "backup" and Path(words[2]).exists())
            # A backup that begins as the new cut is made is told of that.
            is_replaced = words[:2] == ("backup", unseen.live) and "A newer cut has replaced" in done.err
            done.refuses(1, "" if is_replaced else "does not answer")
        slowest_s = max(took_s for _, took_s in ended.values())
        assert slowest_s < 10 + START_S * len(lines)
