"""Cuts of filesystems that many processes write to: each snapshot is whole, without a journal to recover."""

from __future__ import annotations

import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import mounted
import pytest
from cut_rig import GIB, CutGround, cut, run
from fsck_rig import assert_at_rest
from mounted import Mounted, wait_until
from write_load import content_of

# What it measures others would spoil.
pytestmark = pytest.mark.alone

ROUNDS = int(os.environ.get("SNAPFS_TEST_CUTS", "6"))
PROCESSES = 8
_BETWEEN_S = 0.2  # of load between two cuts
_LOAD = Path(__file__).with_name("write_load.py")


@contextmanager
def ext4_files(ground: CutGround, instance: Mounted) -> Iterator[Path]:
    with mounted_snapshot(ground, instance, "ro,noload") as point:
        yield point


@contextmanager
def xfs_files(ground: CutGround, instance: Mounted) -> Iterator[Path]:
    with mounted_snapshot(ground, instance, "ro,norecovery,nouuid") as point:
        yield point


@contextmanager
def btrfs_files(ground: CutGround, instance: Mounted) -> Iterator[Path]:
    """Not mounted: the kernel would take it for another device of the filesystem that is mounted."""
    point = ground.path / "restored"
    point.mkdir(exist_ok=True)
    run("btrfs", "restore", instance.snap_file, point)
    yield point
    run("rm", "-r", point)


@contextmanager
def mounted_snapshot(ground: CutGround, instance: Mounted, options: str) -> Iterator[Path]:
    device = ground.loop(instance.snap_file, "--read-only")
    point = ground.mount(device, "-o", options, name="snapshot-fs")
    yield point
    run("umount", point)
    ground.drop_loop(device)


FILES: dict[str, Callable[[CutGround, Mounted], AbstractContextManager[Path]]] = {
    "ext4": ext4_files,
    "xfs": xfs_files,
    "btrfs": btrfs_files,
}


@pytest.mark.parametrize("fstype", FILES)
def test_every_snapshot_is_whole(ground: CutGround, fstype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounted, "WATCHDOG_S", 20.0 * ROUNDS)
    instance = ground.mounted(ground.made(fstype, GIB))
    point = ground.filesystem(instance)
    record = ground.path / "record"
    record.touch()
    load = ground.started(sys.executable, _LOAD, point, record, str(PROCESSES))
    wait_until(lambda: record.read_bytes().count(b"\n") > 2 * PROCESSES, 60)
    figures = []
    for _ in range(ROUNDS):
        time.sleep(_BETWEEN_S)
        kept = record.read_text().splitlines()
        taken = cut(instance.live)
        assert taken["frozen"] == [str(point)]
        figures.append((taken["freeze_ms"], taken["cut_ms"]))
        # Only for this test's time: what is compared cannot change.
        os.killpg(load.pid, signal.SIGSTOP)
        assert_at_rest(fstype, instance.snap_file)
        with FILES[fstype](ground, instance) as files:
            assert not [line for line in kept if not is_kept(files, line)]
        os.killpg(load.pid, signal.SIGCONT)
    freeze_ms, cut_ms = ([row[i] for row in figures] for i in (0, 1))
    print(f"{fstype} freeze_ms {sorted(freeze_ms)} cut_ms {sorted(cut_ms)} files {len(kept)}")
    assert statistics.median(freeze_ms) < 300


def is_kept(files: Path, line: str) -> bool:
    path, name = line.split()
    return (files / path).read_bytes() == content_of(name)
