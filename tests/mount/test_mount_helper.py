"""`mount -t fuse.snapfs`, `umount` and lines of fstab: mount(8) itself, with the helpers where it looks for them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest
from ground import Ground
from helper_rig import Machine, machine_with_helpers
from mounted import find_processes

from snapfs.cli.mount_helper import FOR_FUSE, PASSED_OVER
from tests.machine import SNAPFS, wait_until

CONTENT = os.urandom(1 << 20)


@pytest.fixture
def machine(ground: Ground) -> Iterator[Machine]:
    ground.image(CONTENT)
    for name in ("live", "snap", "a, b"):
        (ground.path / name).mkdir()
    with machine_with_helpers(ground.path) as machine:
        yield machine


def mount(machine: Machine, options: str, *more: str) -> None:
    done = machine.run("mount", "-t", "fuse.snapfs", "disk.img", "live", "-o", options, *more)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_mount_makes_both_views_and_umount_ends_them(machine: Machine) -> None:
    mount(machine, "snap=snap,protect=all,nofail,x-systemd.requires=/srv,_netdev")
    live = machine.inside(machine.path / "live/disk.img")
    with live.open("r+b") as file:
        file.write(b"new")
    assert machine.inside(machine.path / "snap/disk.img").read_bytes() == CONTENT
    # It returns when all is over: the image is whole, the store is gone.
    assert machine.run("umount", "live").returncode == 0
    assert machine.mount_points() == []
    assert not (machine.path / "disk.img.snapfs").exists()
    assert (machine.path / "disk.img").read_bytes() == b"new" + CONTENT[3:]


def test_every_option_that_is_taken_can_be_given(machine: Machine) -> None:
    # The automatic unmount is for users, and others may be let in when /etc/fuse.conf says so: not for this test.
    others = {"auto_unmount", "allow_root", "uhelper"}
    mount(machine, ",".join(["snap=snap", *(word for word in (*FOR_FUSE, *PASSED_OVER) if word not in others)]))
    assert machine.run("umount", "live").returncode == 0


def test_umount_by_an_absolute_path_ends_both_views_too(machine: Machine) -> None:
    mount(machine, "snap=snap")
    assert machine.run("umount", machine.path / "live").returncode == 0
    wait_until(lambda: not (machine.path / "disk.img.snapfs").exists(), what="the end of the instance")
    assert machine.mount_points() == []


@pytest.mark.parametrize("written", [r"a\, b/store", '"a, b/store"'], ids=["escaped", "quoted"])
def test_a_value_may_hold_commas_and_spaces(machine: Machine, written: str) -> None:
    mount(machine, f"snap=snap,store={written}")
    assert (machine.path / "a, b/store/log").exists()


def test_a_line_of_fstab_is_mounted_once(machine: Machine) -> None:
    fstab, here = machine.path / "fstab", machine.path
    options = rf"defaults,nofail,user,x-systemd.automount,snap={here}/snap,store={here}/a\,\040b/store"
    fstab.write_text(f"{here}/disk.img {here}/live fuse.snapfs {options} 0 0\n")
    for _ in range(2):
        done = machine.run("mount", "--all", "--fstab", fstab)
        assert (done.returncode, done.stderr) == (0, "")
    assert sorted(machine.mount_points()) == [f"{here}/live", f"{here}/snap"]
    assert (here / "a, b/store/log").exists()


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        ("snap=snap,protekt=all", 1, "The mount option protekt=all is unknown; see mount.fuse.snapfs --help."),
        ("protect=all", 1, "The mount option snap is missing; say where the snapshot is shown: -o snap=DIR."),
        ("snap=nowhere", 32, "nowhere does not exist"),
    ],
)
def test_a_mount_that_fails_says_why_in_one_sentence(
    machine: Machine, options: str, code: int, sentence: str
) -> None:
    done = machine.run("mount", "-t", "fuse.snapfs", "disk.img", "live", "-o", options)
    assert done.returncode == code
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert machine.mount_points() == []


def test_a_fake_mount_looks_at_the_options_alone(machine: Machine) -> None:
    mount(machine, "snap=snap", "--fake")
    assert machine.mount_points() == []


def test_umount_leaves_a_view_that_is_in_use(machine: Machine) -> None:
    mount(machine, "snap=snap")
    with machine.inside(machine.path / "snap/disk.img").open("rb"):
        done = machine.run("umount", "live")
        assert done.returncode == 32
        assert "is in use" in done.stderr
        assert len(machine.mount_points()) == 2
        assert machine.run("umount", "--lazy", "snap").returncode == 0
        assert machine.mount_points() == [str(machine.path / "live")]
    wait_until(lambda: not (machine.path / "disk.img.snapfs").exists(), what="the end of the instance")
    assert machine.mount_points() == []


def test_an_instance_that_was_killed_is_carried_on_by_the_same_mount(machine: Machine) -> None:
    mount(machine, "snap=snap,store=store")
    machine.inside(machine.path / "live/disk.img").write_bytes(bytes(len(CONTENT)))
    status = json.loads(machine.run(SNAPFS, "status", "--json", "live").stdout)
    for process in find_processes(status["pid"]).values():
        process.send(signal.SIGKILL)
        process.await_end()
        process.close()
    again = machine.run("mount", "-t", "fuse.snapfs", "disk.img", "live", "-o", "snap=snap,store=store")
    assert (again.returncode, again.stderr.count("A stale mount of a killed snapfs was cleared")) == (0, 2)
    assert machine.inside(machine.path / "snap/disk.img").read_bytes() == CONTENT
