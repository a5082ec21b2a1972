"""A file of the store is cut short while it is in use: no process ends, live data is whole, the snapshot is lost."""

from __future__ import annotations

import os

import pytest
from ground import Ground
from mounted import Mounted, snapfs, wait_until

from cow.disk.directory import BITMAP_NAMES, INDEX_NAME, NUMBERS_NAME

BLOCK_BYTES = 4096
OLD, NEW = os.urandom(4 << 20), os.urandom(4 << 20)
SHARED_FILES = ("control", "staging")
CUT_FILES = (*BITMAP_NAMES, INDEX_NAME, NUMBERS_NAME)


def cut_short(view: Mounted, name: str, kept_bytes: int = 0) -> None:
    path = view.store / name if name in SHARED_FILES else next(view.store.glob("cut-*")) / name
    os.truncate(path, kept_bytes)


def write(view: Mounted, first: int, end: int) -> None:
    with view.live_file.open("r+b", buffering=0) as file:
        for at in range(first, end, BLOCK_BYTES):
            assert os.pwrite(file.fileno(), NEW[at : at + BLOCK_BYTES], at) == BLOCK_BYTES
        os.fsync(file.fileno())


def check_snapshot(view: Mounted) -> int:
    """How many blocks cannot be read; the others are those of the cut."""
    lost = 0
    fd = os.open(view.snap_file, os.O_RDONLY)
    try:
        for at in range(0, len(OLD), BLOCK_BYTES):
            try:
                assert os.pread(fd, BLOCK_BYTES, at) == OLD[at : at + BLOCK_BYTES]
            except OSError:
                lost += 1
    finally:
        os.close(fd)
    return lost


@pytest.mark.parametrize("name", [*CUT_FILES, *SHARED_FILES])
def test_the_live_view_goes_on(ground: Ground, name: str) -> None:
    view = ground.mounted(ground.image(OLD), "--protect", "all")
    view.expect_log("cut short|the store is damaged|ends before the data does|could not be closed|slow to listen")
    write(view, 0, 1 << 20)
    cut_short(view, name)
    write(view, 1 << 19, 3 << 20)
    # A map that is of no use for the snapshot is missed when somebody looks.
    view.status()
    wait_until(lambda: check_snapshot(view) == len(OLD) // BLOCK_BYTES, what="the end of the snapshot")
    write(view, 3 << 20, 4 << 20)
    status = view.status()
    assert status["snapshot"]["state"] == "damaged"
    assert "files of the store were cut short or cannot be read" in status["error"]
    assert all(process.is_running for process in view.processes.values())
    assert view.live_file.read_bytes() == NEW
    view.umount()
    assert view.image.read_bytes() == NEW


@pytest.mark.parametrize("kept_bytes", [0, 1, 16])
def test_nothing_of_the_image_is_taken_for_the_snapshot(ground: Ground, kept_bytes: int) -> None:
    """What is left of a page reads as zeros, without a fault: as if nothing had been preserved there."""
    view = ground.mounted(ground.image(OLD), "--protect", "all")
    view.expect_log("cut short|the store is damaged|slow to listen|could not be (closed|told)")
    write(view, 0, len(NEW))
    cut_short(view, "settled", kept_bytes)
    assert check_snapshot(view) == len(OLD) // BLOCK_BYTES


@pytest.mark.parametrize("name", ["settled", INDEX_NAME])
def test_the_next_cut_is_whole_again(ground: Ground, name: str) -> None:
    view = ground.mounted(ground.image(OLD), "--protect", "all")
    view.expect_log("cut short|the store is damaged")
    write(view, 0, 1 << 20)
    cut_short(view, name)
    write(view, 0, 4 << 20)
    assert snapfs("snapshot", view.live).returncode == 0
    with view.live_file.open("r+b", buffering=0) as file:
        file.write(OLD)
    assert view.snap_file.read_bytes() == NEW
    assert view.status()["snapshot"]["state"] == "active"


@pytest.mark.parametrize("name", SHARED_FILES)
def test_a_store_that_can_hold_no_further_cut_says_so(ground: Ground, name: str) -> None:
    view = ground.mounted(ground.image(OLD), "--protect", "all")
    view.expect_log("cut short|the store is damaged|ends before the data does|could not be closed")
    cut_short(view, name)
    done = snapfs("snapshot", view.live)
    assert done.returncode == 1
    assert done.stderr == (
        f"snapfs: Files of the store {view.store} were cut short, so it can hold no further cut; "
        "unmount the image and mount it again.\n"
    )


def test_kept_it_is_not_believed_at_the_next_mount(ground: Ground) -> None:
    view = ground.mounted(ground.image(OLD), "--protect", "all", "--store", ground.path / "kept")
    view.expect_log("cut short|the store is damaged|could not be closed|unreadable|damaged")
    write(view, 0, 1 << 20)
    cut_short(view, "settled")
    write(view, 0, 2 << 20)
    view.umount()
    view.mount()
    assert check_snapshot(view) == len(OLD) // BLOCK_BYTES
    assert view.live_file.read_bytes() == NEW[: 2 << 20] + OLD[2 << 20 :]
