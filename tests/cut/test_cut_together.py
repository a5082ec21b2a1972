"""Cuts of several images in one instant: all of them, or none."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from cut_rig import MIB, CutGround, cut, finished, is_frozen, run, snapfs
from mounted import Mounted, wait_until

from snapfs.client import connected
from snapfs.errors import SnapfsError
from snapfs.protocol import HoldWrites, PrepareCut, ResumeWrites, TakeCut, deadline_in

_BLOCK_BYTES = 4096


@pytest.fixture
def pair(ground: CutGround) -> tuple[Mounted, Mounted]:
    """Two disks of one machine, empty."""
    one, other = (ground.mounted(ground.image(4 * MIB, f"{name}.img"), name=name) for name in ("one", "other"))
    return one, other


def cut_together(*lives: Path) -> dict[str, Any]:
    done = snapfs("snapshot", *lives, "--json")
    assert done.returncode == 0, done.stderr
    taken: dict[str, Any] = json.loads(done.stdout)
    return taken


def identity(instance: Mounted) -> str:
    found: str = instance.status()["snapshot"]["id"]
    return found


class Alternating(threading.Thread):
    """Writes a growing number at the beginning of one file and then of the other, without end, each durably."""

    def __init__(self, *files: Path) -> None:
        super().__init__(daemon=True)
        self._fds = [os.open(file, os.O_RDWR | os.O_DSYNC) for file in files]
        self._is_over = False
        self.number = 0

    def run(self) -> None:
        while not self._is_over:
            self.number += 1
            for fd in self._fds:
                os.pwrite(fd, self.number.to_bytes(8, "little"), 0)

    def end(self) -> None:
        self._is_over = True
        self.join()
        for fd in self._fds:
            os.close(fd)


def number_in(file: Path) -> int:
    return int.from_bytes(file.read_bytes()[:8], "little")


def test_no_snapshot_has_a_write_without_the_one_before_it(pair: tuple[Mounted, Mounted]) -> None:
    one, other = pair
    writer = Alternating(one.live_file, other.live_file)
    writer.start()
    try:
        for _ in range(10):
            seen = writer.number
            wait_until(lambda seen=seen: writer.number > seen + 20)  # type: ignore[misc]
            cut_together(one.live, other.live)
            first, second = number_in(one.snap_file), number_in(other.snap_file)
            assert first - 1 <= second <= first
    finally:
        writer.end()


def test_a_filesystem_on_two_images_is_frozen_once_and_whole_in_both(ground: CutGround) -> None:
    images = [ground.image(128 * MIB, f"{name}.img") for name in ("one", "other")]
    instances = [ground.mounted(image, name=image.stem) for image in images]
    loops = [ground.loop(instance.live_file) for instance in instances]
    run("mkfs.btrfs", "-q", "-f", "-d", "raid0", "-m", "raid1", *loops)
    for loop in loops:
        run("btrfs", "device", "scan", loop)
    point = ground.mount(loops[0])
    (point / "file").write_bytes(os.urandom(8 * MIB))
    expected = (point / "file").read_bytes()
    taken = cut_together(*(instance.live for instance in instances))
    assert [one["frozen"] for one in taken["cuts"]] == [[str(point)], [str(point)]]
    assert not is_frozen(point)
    run("umount", point)
    copies = [image.with_suffix(".copy") for image in images]
    for instance, copy in zip(instances, copies, strict=True):
        run("cp", "--sparse=always", instance.snap_file, copy)
    run("btrfs", "device", "scan", "--forget")
    for loop in loops:
        ground.drop_loop(loop)
    loops = [ground.loop(copy) for copy in copies]
    for loop in loops:
        run("btrfs", "device", "scan", loop)
    again = ground.mount(loops[0], "-o", "ro", name="again")
    assert (again / "file").read_bytes() == expected


def test_each_snapshot_names_the_others_of_its_instant(pair: tuple[Mounted, Mounted]) -> None:
    one, other = pair
    taken = cut_together(one.live, other.live)
    members = [{"image": str(instance.image), "id": identity(instance)} for instance in pair]
    for instance in pair:
        assert instance.status()["snapshot"]["group"] == {"id": taken["group"], "members": members}
    assert [(cut["image"], cut["id"]) for cut in taken["cuts"]] == [tuple(one.values()) for one in members]
    cut(other.live)
    assert other.status()["snapshot"]["group"] is None


def test_the_group_is_known_after_a_restart(ground: CutGround, tmp_path: Path) -> None:
    instances = [
        ground.mounted(ground.image(MIB, f"{name}.img"), "--store", ground.path / f"{name}-store", name=name)
        for name in ("one", "other")
    ]
    group = cut_together(*(instance.live for instance in instances))["group"]
    for instance in instances:
        instance.umount()
        instance.mount()
        assert instance.status()["snapshot"]["group"]["id"] == group


def test_who_is_killed_between_two_of_them_leaves_each_as_it_says(
    ground: CutGround, pair: tuple[Mounted, Mounted]
) -> None:
    one, other = pair
    before = identity(other)
    process = ground.stopping_cut(one.live, other.live, at="cut+", deadline="kept")
    os.killpg(process.pid, signal.SIGKILL)
    finished(process)
    for instance in pair:
        instance.live_file.write_bytes(b"goes on")
        assert instance.status()["snapshot"]["group"] is None
    assert identity(other) == before


def test_a_name_is_of_all_of_them_or_of_none_when_who_takes_it_is_killed(
    ground: CutGround, pair: tuple[Mounted, Mounted]
) -> None:
    one, other = pair
    one.expect_log("is taken back")
    process = ground.stopping_cut(one.live, other.live, "--name", "both", at="cut+", deadline="kept")
    os.killpg(process.pid, signal.SIGKILL)
    finished(process)
    wait_until(lambda: not names(one), what="the end of the first")
    assert names(other) == [""]
    assert snapfs("snapshot", one.live, other.live, "--name", "both").returncode == 0


def test_a_name_is_of_all_of_them_or_of_none_when_one_dies(ground: CutGround, pair: tuple[Mounted, Mounted]) -> None:
    one, other = pair
    other.expect_log(".")
    process = ground.stopping_cut(one.live, other.live, "--name", "both", at="cut+", deadline="kept")
    other.kill("live")
    code, _, err = finished(process, "\n")
    assert (code, err.count("\n")) == (1, 1)
    assert names(one) == []


def names(instance: Mounted) -> list[str]:
    return [listed["name"] for listed in instance.status()["snapshots"]]


def test_who_is_killed_while_all_are_held_changes_nothing(ground: CutGround, pair: tuple[Mounted, Mounted]) -> None:
    before = [identity(instance) for instance in pair]
    process = ground.stopping_cut(*(instance.live for instance in pair), at="cut", deadline="kept")
    os.killpg(process.pid, signal.SIGKILL)
    finished(process)
    for instance in pair:
        instance.live_file.write_bytes(b"goes on")
    assert [identity(instance) for instance in pair] == before
    cut_together(*(instance.live for instance in pair))


@pytest.mark.parametrize("step", ["hold+", "cut", "cut+", "resume"])
def test_who_is_killed_while_somebody_waits_keeps_nobody_waiting(
    ground: CutGround, pair: tuple[Mounted, Mounted], step: str
) -> None:
    one, other = pair
    process = ground.stopping_cut(one.live, other.live, "--freeze-timeout", "30", at=step, deadline="kept")
    writer = threading.Thread(target=write_durably, args=(one.live_file,), daemon=True)
    writer.start()
    writer.join(0.2)
    assert writer.is_alive()
    os.killpg(process.pid, signal.SIGKILL)
    writer.join(10)
    assert not writer.is_alive()
    finished(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", ["cut+", "resume"])
def test_who_is_interrupted_after_the_first_gets_all_of_them(
    ground: CutGround, pair: tuple[Mounted, Mounted], step: str, number: int
) -> None:
    before = [identity(instance) for instance in pair]
    process = ground.stopping_cut(*(instance.live for instance in pair), at=step, deadline="kept")
    process.send_signal(number)
    code, out, err = finished(process, "\n")
    assert (code, err) == (0, "")
    group = json.loads(out.splitlines()[-1])["group"]
    for instance, old in zip(pair, before, strict=True):
        assert identity(instance) != old
        assert instance.status()["snapshot"]["group"]["id"] == group


def test_who_is_interrupted_before_the_first_gets_none(ground: CutGround, pair: tuple[Mounted, Mounted]) -> None:
    before = [identity(instance) for instance in pair]
    process = ground.stopping_cut(*(instance.live for instance in pair), at="prepare-cut+", deadline="kept")
    process.send_signal(signal.SIGINT)
    assert finished(process, "\n")[0] == 130
    assert [identity(instance) for instance in pair] == before


def write_durably(file: Path) -> None:
    fd = os.open(file, os.O_RDWR | os.O_DSYNC)
    try:
        os.pwrite(fd, b"waits", 0)
    finally:
        os.close(fd)


def test_nothing_is_cut_when_one_of_them_does_not_answer(pair: tuple[Mounted, Mounted]) -> None:
    one, other = pair
    before = identity(one)
    other.kill("live")
    other.expect_log(".")
    done = snapfs("snapshot", one.live, other.live)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert identity(one) == before


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("step", ["prepare-cut+", "resume+", "cut-facts"])
def test_the_one_that_has_died_is_named_and_the_other_told_what_was_taken(
    ground: CutGround, pair: tuple[Mounted, Mounted], step: str, victim: int
) -> None:
    dying, other = pair[victim], pair[1 - victim]
    dying.expect_log(".")
    before = identity(other)
    process = ground.stopping_cut(*(instance.live for instance in pair), at=step, deadline="kept")
    dying.kill("live")
    code, _, err = finished(process, "\n")
    assert code == 1
    assert str(dying.store) in err
    assert str(other.store) not in err
    status = other.status()["snapshot"]
    if step == "prepare-cut+":
        assert (status["id"], status["group"]) == (before, None)
    else:
        assert "ended while a cut was taken" in err
        assert status["id"] in [member["id"] for member in status["group"]["members"]]
        wait_until(lambda: other.status()["snapshot"]["map"] == "ready", what="the map")


def test_held_writes_go_on_when_the_time_is_over(pair: tuple[Mounted, Mounted]) -> None:
    one, _ = pair
    with connected(one.store) as server:
        generation = server.ask(PrepareCut(deadline_s=deadline_in(5))).generation
        until = deadline_in(2)
        server.ask(HoldWrites(generation=generation, deadline_s=until))
        one.live_file.write_bytes(b"late")
        assert time.monotonic() >= until
        with pytest.raises(SnapfsError, match="took too long"):
            server.ask(TakeCut(generation=generation, deadline_s=deadline_in(5)))


def test_held_writes_wait_until_they_are_told_to_go_on(pair: tuple[Mounted, Mounted]) -> None:
    one, _ = pair
    with connected(one.store) as server:
        generation = server.ask(PrepareCut(deadline_s=deadline_in(5))).generation
        server.ask(HoldWrites(generation=generation, deadline_s=deadline_in(30)))
        writer = threading.Thread(target=one.live_file.write_bytes, args=(b"held",), daemon=True)
        writer.start()
        server.ask(TakeCut(generation=generation, deadline_s=deadline_in(5)))
        writer.join(0.1)
        assert writer.is_alive()
        server.ask(ResumeWrites())
        writer.join(10)
        assert not writer.is_alive()


def test_one_named_twice_is_wrong_usage(pair: tuple[Mounted, Mounted]) -> None:
    one, _ = pair
    done = snapfs("snapshot", one.live, one.image)
    assert done.returncode == 2
    assert done.stderr == f"snapfs: {one.image} is named twice; name each image once.\n"


def test_an_image_inside_another_one_is_refused(ground: CutGround) -> None:
    outer = ground.mounted(ground.made("ext4", 64 * MIB, "outer.img"), name="outer")
    point = ground.filesystem(outer)
    inner_image = point / "inner.img"
    with inner_image.open("wb") as file:
        file.truncate(4 * MIB)
    inner = ground.mounted(inner_image, name="inner")
    done = snapfs("snapshot", outer.live, inner.live)
    assert done.returncode == 1
    assert f"{inner_image}, or its store, lies on a filesystem inside {outer.image}" in done.stderr
    inner.umount()


def test_the_freeze_of_four_is_one_short_window(ground: CutGround) -> None:
    instances = [ground.mounted(ground.made("ext4", 16 * MIB, f"{no}.img"), name=f"views{no}") for no in range(4)]
    points = [ground.filesystem(instance, name=f"fs{no}") for no, instance in enumerate(instances)]
    taken = cut_together(*(instance.live for instance in instances))
    assert [one["frozen"] for one in taken["cuts"]] == [[str(point)] for point in points]
    assert len({one["freeze_ms"] for one in taken["cuts"]}) == 1
