"""Filesystems mounted from the live view when the instance ends under them: what they held is in the image."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
from ground import Ground
from mounted import SERVERS, Mounted, mount_points_below, run

MIB = 1 << 20
DATA = os.urandom(3 * MIB)
KILLED_SYNCER = """
import os, signal, sys
if "snapfs.servers.syncer" in sys.orig_argv:
    os.kill(os.getpid(), signal.SIGUSR2)
"""
LOG = "still in use|goes on alone|server was killed|server ended|the map of used blocks failed"


def above(ground: Ground, *, nested: bool) -> tuple[Mounted, Path]:
    """A file on a filesystem on the live view, or on one in a file of that; nobody has synced it."""
    image = ground.image(64 * MIB)
    run("mkfs.ext4", "-q", "-F", image)
    instance = ground.mounted(image)
    instance.expect_log(LOG)
    point = ground.mount(ground.loop(instance.live_file))
    if nested:
        inner = ground.image(32 * MIB, "fs/inner.img")
        run("mkfs.ext4", "-q", "-F", inner)
        point = ground.mount(ground.loop(inner), name="inner")
    (point / "file").write_bytes(DATA)
    return instance, point


def check(ground: Ground, instance: Mounted, *, nested: bool) -> None:
    for name in SERVERS:
        instance.processes[name].await_end()
    for point in ("inner", "fs", "views/live", "views/snap"):
        if ground.path / point in mount_points_below(ground.path):
            run("umount", "-l", ground.path / point)
    point = ground.mount(ground.loop(instance.image), name="again")
    if nested:
        point = ground.mount(ground.loop(point / "inner.img"), name="again-inner")
    assert (point / "file").read_bytes() == DATA


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_is_mounted_from_the_view_is_synced_first(ground: Ground, number: signal.Signals, nested: bool) -> None:
    instance, _ = above(ground, nested=nested)
    instance.processes["supervisor"].send(number)
    check(ground, instance, nested=nested)
    assert "was synced" in instance.log()


def test_one_that_is_frozen_keeps_nobody_for_ever(ground: Ground) -> None:
    """Its freezing has written all that it held."""
    instance, point = above(ground, nested=False)
    instance.expect_log("could not be")
    run("fsfreeze", "-f", point)
    try:
        instance.processes["supervisor"].send(signal.SIGKILL)
        instance.processes["live"].await_end(timeout_s=30)
    finally:
        run("fsfreeze", "-u", point)
    check(ground, instance, nested=False)


def test_a_syncer_that_ends_early_is_told(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    start = ground.path / "start"
    start.mkdir()
    (start / "sitecustomize.py").write_text(KILLED_SYNCER)
    monkeypatch.setenv("PYTHONPATH", str(start))
    instance, _ = above(ground, nested=False)
    instance.expect_log("not all was synced")
    instance.processes["supervisor"].send(signal.SIGTERM)
    instance.processes["live"].await_end()
    assert "ended early; not all was synced" in instance.log()


def test_an_orphan_gets_what_the_kernel_holds(ground: Ground) -> None:
    """More than the ring: the compactor works as long as the live server does."""
    image = ground.image(os.urandom(120 * MIB))
    instance = ground.mounted(image)
    data = os.urandom(100 * MIB)
    file = instance.live_file.open("r+b", buffering=0)
    file.write(data)
    instance.processes["supervisor"].send(signal.SIGKILL)
    # All of it is handed over; then the server, which has waited for that, may be gone before it is asked to close.
    with contextlib.suppress(OSError):
        file.close()
    for name in SERVERS:
        instance.processes[name].await_end()
    assert image.read_bytes()[: len(data)] == data
    run("umount", instance.snap, instance.live)
    assert "Carrying on" in instance.mount().stdout
