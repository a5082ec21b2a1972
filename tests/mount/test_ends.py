"""Every way to end an instance: it leaves the image with all that was written, and a kept store is carried on."""

from __future__ import annotations

import mmap
import os
import signal
from collections.abc import Callable

import pytest
from ground import Ground
from mounted import SNAPFS, Mounted, run, snapfs
from sectors import content
from written_views import overwrite, overwritten

MIB = 1 << 20

ENDS: dict[str, Callable[[Mounted], object]] = {
    "SIGTERM": lambda instance: instance.processes["supervisor"].send(signal.SIGTERM),
    "SIGINT": lambda instance: instance.processes["supervisor"].send(signal.SIGINT),
    "umount of LIVE": lambda instance: run(SNAPFS, "umount", instance.live),
    "umount of SNAP": lambda instance: run(SNAPFS, "umount", instance.snap),
    "umount of IMAGE": lambda instance: run(SNAPFS, "umount", instance.image),
    "umount of the live file": lambda instance: run(SNAPFS, "umount", instance.live_file),
    "umount(8) of live": lambda instance: run("umount", instance.live),
    "umount(8) of the snapshot": lambda instance: run("umount", instance.snap),
    "fusermount3 of live": lambda instance: run("fusermount3", "-u", instance.live),
    "fusermount3 of the snapshot": lambda instance: run("fusermount3", "-u", instance.snap),
    "lazy umount of live": lambda instance: run("umount", "-l", instance.live),
    "SIGTERM to all": lambda instance: [process.send(signal.SIGTERM) for process in instance.processes.values()],
}


@pytest.mark.parametrize("end", ENDS)
def test_an_end_leaves_only_the_image(ground: Ground, end: str) -> None:
    old = content(2 * MIB)
    instance = ground.mounted(ground.image(old))
    overwrite(instance)
    ENDS[end](instance)
    instance.await_end()
    assert instance.image.read_bytes() == overwritten(old)
    assert sorted(os.listdir(ground.path)) == ["disk.img", "views"]
    assert snapfs("status", instance.live).returncode == 1


@pytest.mark.parametrize("end", ENDS)
def test_a_named_store_carries_the_snapshot_on(ground: Ground, end: str) -> None:
    old = content(2 * MIB)
    instance = ground.mounted(ground.image(old), "--store", ground.path / "kept")
    overwrite(instance)
    snapshot_id = instance.status()["snapshot"]["id"]
    ENDS[end](instance)
    instance.await_end()
    assert instance.image.read_bytes() == overwritten(old)
    done = instance.mount()
    assert "Carrying on with the same snapshot." in done.stdout
    assert instance.status()["snapshot"]["id"] == snapshot_id
    assert instance.snap_file.read_bytes() == old
    assert instance.live_file.read_bytes() == overwritten(old)
    overwrite(instance, offset=MIB)
    assert instance.snap_file.read_bytes() == old


@pytest.mark.parametrize("server", ["live", "snapshot", "compactor"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_server_ends_only_by_its_supervisor(ground: Ground, server: str, number: signal.Signals) -> None:
    old = content(MIB)
    instance = ground.mounted(ground.image(old))
    overwrite(instance)
    instance.processes[server].send(number)
    assert instance.live_file.read_bytes() == overwritten(old)
    instance.umount()
    assert instance.image.read_bytes() == overwritten(old)


def test_umount_while_the_map_is_computed(ground: Ground) -> None:
    image = ground.image(200 * MIB)
    run("mkfs.ext4", "-q", "-F", image)
    for end in ("umount(8) of the snapshot", "umount(8) of live", "umount of SNAP"):
        instance = ground.mounted(image, name=f"views, {end}")
        ENDS[end](instance)
        instance.await_end()


def test_a_long_staging_is_kept_at_the_end(ground: Ground) -> None:
    """What is still in the ring at the end is in the kept store; the store then has no ring to speak of."""
    old = os.urandom(24 * MIB)
    instance = ground.mounted(ground.image(old), "--store", ground.path / "kept")
    with instance.live_file.open("r+b") as file:
        file.write(bytes(24 * MIB))
    instance.umount()
    assert instance.image.read_bytes() == bytes(24 * MIB)
    instance.mount()
    assert instance.status()["buffer"]["staged_bytes"] == 0
    assert instance.snap_file.read_bytes() == old


def test_a_kept_store_is_sealed_again_and_again(ground: Ground) -> None:
    old = content(2 * MIB)
    instance = ground.instance(ground.image(old), "--store", ground.path / "kept")
    for turn in range(3):
        instance.mount()
        assert instance.snap_file.read_bytes() == old
        overwrite(instance, offset=turn * 300_000)
        instance.umount()
    instance.mount()
    assert instance.snap_file.read_bytes() == old


def test_writes_of_an_open_mapping_reach_the_image(ground: Ground) -> None:
    instance = ground.mounted(ground.image(MIB))
    with instance.live_file.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[1000:1003] = b"new"
    instance.umount()
    assert instance.image.read_bytes()[1000:1003] == b"new"
