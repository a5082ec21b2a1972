"""After a kill or a power loss a snapshot goes on only with the disk, and the content, that it was of."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cow.disk.directory import LOCK_NAME
from cow.disk.files import Files
from cow.disk.header import Header, read_header, write_header
from cow.disk.image import Image
from cow.disk.layout import Durability
from cow.errors import StoreError
from cow.mount.recovery import Outcome, Request, open_store
from tests.cli.command_line import Bench, loop_device, processes_about, run, snapfs, wait_until
from tests.machine import detach_loop

POWER = ("--durability", "power")
BOOTED_NS = 10**18
# linux/loop.h
LOOP_CTL_ADD, LOOP_CTL_REMOVE = 0x4C80, 0x4C81


def kill(bench: Bench) -> None:
    for pid in processes_about(bench.path):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes_about(bench.path))


def restart(store: Path) -> None:
    """What the store left behind is of another boot of the machine."""
    header = read_header(store)
    assert header is not None
    write_header(store, replace(header, boot_id=b"x" * 16, image_dev=header.image_dev + 99), Files())


@contextmanager
def unused_loop_device() -> Iterator[Path]:
    """One that nobody is given who asks for any: between two disks it would be another test's."""
    # The kernel has about a million of them, and more processes than that.
    number = 1000 + os.getpid() % 500_000
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(control, LOOP_CTL_ADD, number)
        device = Path(f"/dev/loop{number}")
        try:
            yield device
        finally:
            detach_loop(device)
            wait_until(lambda: _removed(control, number), what=f"the end of {device}")
    finally:
        os.close(control)


def _removed(control: int, number: int) -> bool:
    """Not while anybody has it open: whoever looks through all devices of the machine does for a moment."""
    try:
        fcntl.ioctl(control, LOOP_CTL_REMOVE, number)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def test_the_same_disk_is_known_under_another_number_after_a_power_loss(bench: Bench) -> None:
    words = (bench.live, bench.snap, "--store", bench.store, *POWER)
    with loop_device(bench.image) as first:
        snapfs("mount", first, *words).ok()
        old = next(bench.snap.iterdir()).read_bytes()
        run("dd", "if=/dev/zero", f"of={bench.live / first.name}", "bs=64K", "count=1", "conv=notrunc,fsync")
        kill(bench)
        restart(bench.store)
        for view in (bench.snap, bench.live):
            run("umount", "-l", view)
    with loop_device(bench.image) as second:
        for _ in range(2):  # killed once more in the same boot
            assert "Carrying on with the same snapshot" in snapfs("mount", second, *words).ok().out
            assert next(bench.snap.iterdir()).read_bytes() == old
            kill(bench)
        snapfs("mount", second, *words).ok()
        bench.umount().ok()


def test_another_disk_under_the_same_number_is_refused(bench: Bench) -> None:
    other = bench.path / "other.img"
    other.write_bytes(os.urandom(1 << 20))
    words = (bench.live, bench.snap, "--store", bench.store)
    with unused_loop_device() as device:
        run("losetup", device, bench.image)
        snapfs("mount", device, *words).ok()
        kill(bench)
        for view in (bench.snap, bench.live):
            run("umount", "-l", view)
        detach_loop(device)
        run("losetup", device, other)
        snapfs("mount", device, *words).refuses(1, "belongs to another image")


# --- the engine ----------------------------------------------------------------------------------------------


@contextmanager
def opened(bench: Bench, path: Path, boot: bytes, **facts: object) -> Iterator[tuple[Outcome, Header]]:
    fd = os.open(path, os.O_RDWR)
    request = Request(str(path), 4096, boot * 16, Durability.POWER, **facts)  # type: ignore[arg-type]
    try:
        found = open_store(bench.store, Image(fd, 1 << 20, Files()), request, Files())
        yield found.outcome, found.store.header
        found.store.close()
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("facts", "outcome"),
    [
        ({"device_id": "wwid 1", "device_id_lasts": True}, Outcome.CARRIED_ON),
        ({"device_id": "attached 1"}, Outcome.LOST),
        ({}, Outcome.LOST),
    ],
)
def test_a_device_that_cannot_be_known_again_loses_its_snapshot(
    bench: Bench, facts: dict[str, object], outcome: Outcome
) -> None:
    with loop_device(bench.image) as device:
        with opened(bench, device, b"1", **facts):
            pass
        with opened(bench, device, b"1", **facts) as (same_boot, _):
            assert same_boot is Outcome.CARRIED_ON
        with opened(bench, device, b"2", **facts) as (next_boot, _):
            assert next_boot is outcome
        with opened(bench, device, b"2", **facts) as (same_boot, _):
            assert same_boot is Outcome.CARRIED_ON


@pytest.mark.parametrize(("first", "second"), [("attached 1", "attached 2"), ("wwid 1", "wwid 2")])
def test_two_disks_are_never_mixed(bench: Bench, first: str, second: str) -> None:
    with loop_device(bench.image) as device:
        with opened(bench, device, b"1", device_id=first, device_id_lasts=True):
            pass
        for boot in (b"1", b"2"):
            with (
                pytest.raises(StoreError, match="another image"),
                opened(bench, device, boot, device_id=second, device_id_lasts=True),
            ):
                pass
    assert (bench.store / LOCK_NAME).exists()


def test_an_image_changed_in_this_boot_is_refused_after_a_power_loss(bench: Bench) -> None:
    with opened(bench, bench.image, b"1"):
        pass
    os.utime(bench.image, ns=(BOOTED_NS, BOOTED_NS + 1))
    with pytest.raises(StoreError, match="was changed"), opened(bench, bench.image, b"2", booted_ns=BOOTED_NS):
        pass
    os.utime(bench.image, ns=(BOOTED_NS, BOOTED_NS - 1))
    with opened(bench, bench.image, b"2", booted_ns=BOOTED_NS) as (outcome, _):
        assert outcome is Outcome.CARRIED_ON
