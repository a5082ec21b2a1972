"""Files of the store that somebody cuts short under their mappings: the live view goes on, the snapshot is lost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_rig import Rig, pattern

from cow.disk.directory import BITMAP_NAMES, INDEX_NAME, NUMBERS_NAME
from cow.disk.files import PAGE_BYTES
from cow.disk.layout import CutCounter, Durability, State
from cow.errors import BlockReleased, CowError, Damaged, SnapshotLost
from cow.live.overflow import EventKind, OverflowPolicy

BLOCK_BYTES = 512
# More than a page of bits, so that each map has a page behind the first.
COUNT = 40_000
OLD = bytes(COUNT * BLOCK_BYTES)
NEW = pattern(8 * BLOCK_BYTES, 2)
TOUCHED = (0, 100, 20_000, 35_000, COUNT - 8)
CUT_FILES = (*BITMAP_NAMES, INDEX_NAME, NUMBERS_NAME)
SHARED_FILES = ("control", "staging")
PAGES = ("control", NUMBERS_NAME)
MakeRig = Callable[..., Rig]


def path_of(rig: Rig, name: str) -> Path:
    return rig.store_path / name if name in SHARED_FILES else rig.cut.path / name


def opened(make_rig: MakeRig, **choices: object) -> Rig:
    """Every second of the touched places was written before."""
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, staging_slots=256, **choices)
    rig.open()
    for block_no in TOUCHED[::2]:
        rig.engine.write(block_no * BLOCK_BYTES, NEW)
    return rig


def check_snapshot(rig: Rig) -> None:
    """It gives what is right, or nothing."""
    for block_no in TOUCHED:
        try:
            assert not any(rig.reader.read(block_no * BLOCK_BYTES, len(NEW)))
        except (CowError, OSError):
            continue


@pytest.mark.parametrize("policy", list(OverflowPolicy))
@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize(
    ("name", "kept_bytes"),
    [
        (name, kept)
        for name in (*CUT_FILES, *SHARED_FILES)
        for kept in (0, PAGE_BYTES)
        if name not in PAGES or not kept
    ],
)
def test_writes_go_on(
    make_rig: MakeRig, name: str, kept_bytes: int, durability: Durability, policy: OverflowPolicy
) -> None:
    rig = opened(make_rig, durability=durability, policy=policy)
    os.truncate(path_of(rig, name), kept_bytes)
    check_snapshot(rig)
    for block_no in TOUCHED:
        rig.engine.write(block_no * BLOCK_BYTES, NEW)
        check_snapshot(rig)
    assert all(rig.engine.read(block_no * BLOCK_BYTES, len(NEW)) == NEW for block_no in TOUCHED)
    rig.engine.ending.look_at_store()
    with pytest.raises(CowError):
        rig.reader.check()
    assert [event.kind for event in rig.events] == [EventKind.CUT_SHORT]
    assert rig.numbers.state is State.DAMAGED
    rig.compactor.step()
    with pytest.raises(OSError, match="cut short"):
        rig.engine.seal()


def test_the_end_of_the_snapshot_is_on_the_disk_before_the_image_is_written(make_rig: MakeRig) -> None:
    rig = opened(make_rig)
    os.truncate(path_of(rig, "settled"), 0)
    before = rig.image_path.read_bytes()

    def write(data: bytes, offset: int) -> None:
        assert rig.cut.is_unreadable
        assert rig.numbers[CutCounter.UNREADABLE] == 1
        assert rig.image_path.read_bytes() == before
        raise OSError(28, "enough")

    rig.image.write = write  # type: ignore[method-assign, assignment]
    with pytest.raises(OSError, match="enough"):
        rig.engine.write(0, NEW)


def test_a_released_block_does_not_read_as_the_image(make_rig: MakeRig) -> None:
    rig = opened(make_rig)
    rig.engine.cuts.release(0, 16)
    rig.engine.write(0, NEW)
    with pytest.raises(BlockReleased):
        rig.reader.read(0, BLOCK_BYTES)
    os.truncate(path_of(rig, "released"), 0)
    with pytest.raises((Damaged, SnapshotLost)):
        rig.reader.read(0, BLOCK_BYTES)


@pytest.mark.parametrize("name", ["settled", "released", "free"])
def test_a_file_that_was_cut_short_is_not_made_whole_again(make_rig: MakeRig, name: str) -> None:
    rig = opened(make_rig)
    path = path_of(rig, name)
    os.truncate(path, 0)
    for change in (lambda: rig.engine.cuts.release(0, COUNT), lambda: rig.settle_free([(36_000, 36_016)])):
        with contextlib.suppress(OSError):
            change()
    assert path.stat().st_size == 0


@pytest.mark.parametrize("name", CUT_FILES)
def test_the_next_cut_is_whole_again(make_rig: MakeRig, name: str) -> None:
    rig = opened(make_rig)
    os.truncate(path_of(rig, name), 0)
    for block_no in TOUCHED:
        rig.engine.write(block_no * BLOCK_BYTES, NEW)
    rig.make_cut()
    for block_no in TOUCHED:
        rig.engine.write(block_no * BLOCK_BYTES, bytes(len(NEW)))
    assert all(rig.reader.read(block_no * BLOCK_BYTES, len(NEW)) == NEW for block_no in TOUCHED)
    assert rig.numbers.state is State.ACTIVE


@pytest.mark.parametrize("name", SHARED_FILES)
def test_what_all_cuts_share_holds_no_further_one(make_rig: MakeRig, name: str) -> None:
    rig = opened(make_rig)
    assert rig.store is not None
    assert rig.store.can_hold_a_cut
    os.truncate(path_of(rig, name), 0)
    assert not rig.store.can_hold_a_cut


@pytest.mark.parametrize("name", [*CUT_FILES, *SHARED_FILES])
def test_after_a_kill_nothing_of_it_is_believed(make_rig: MakeRig, name: str) -> None:
    rig = opened(make_rig)
    os.truncate(path_of(rig, name), 0)
    for block_no in TOUCHED:
        rig.engine.write(block_no * BLOCK_BYTES, NEW)
    rig.engine.ending.look_at_store()
    rig.abandon()
    rig.open()
    with pytest.raises(SnapshotLost):
        rig.reader.check()
    assert all(rig.engine.read(block_no * BLOCK_BYTES, len(NEW)) == NEW for block_no in TOUCHED)
