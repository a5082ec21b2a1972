"""Old blocks that the image cannot give: they are lost to the snapshot, alone, and the live write goes on."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest
from engine_rig import NEXT_BOOT, Rig, SpoiltImage, pattern

from cow.disk.bitmaps import Bitmap
from cow.disk.files import Files
from cow.disk.layout import Counter, Durability, State
from cow.errors import BlockReleased, Damaged
from cow.live.overflow import EventKind, OverflowPolicy
from cow.mount.check import verify
from cow.mount.recovery import Outcome

BLOCK_BYTES = 4096
COUNT = 300
OLD = pattern(COUNT * BLOCK_BYTES)
NEW = pattern(256 * BLOCK_BYTES, 2)
BAD = [20, 21, 100]
MakeRig = Callable[..., Rig]
BOTH = pytest.mark.parametrize("durability", list(Durability))


def spoilt(make_rig: MakeRig, durability: Durability, policy: OverflowPolicy = OverflowPolicy.BREAK_SNAPSHOT) -> Rig:
    rig = make_rig(OLD, durability=durability, policy=policy, staging_slots=1024)
    rig.spoil(*BAD)
    rig.open()
    return rig


def lost_blocks(rig: Rig) -> list[int]:
    """The blocks that the snapshot cannot give; all others are right."""
    lost = []
    for block_no in range(COUNT):
        at = block_no * BLOCK_BYTES
        try:
            assert rig.reader.read(at, BLOCK_BYTES) == OLD[at : at + BLOCK_BYTES]
        except Damaged:
            lost.append(block_no)
    return lost


@BOTH
@pytest.mark.parametrize("policy", [OverflowPolicy.BREAK_SNAPSHOT, OverflowPolicy.WAIT])
def test_a_large_write_loses_just_the_blocks_that_cannot_be_read(
    make_rig: MakeRig, durability: Durability, policy: OverflowPolicy
) -> None:
    rig = spoilt(make_rig, durability, policy)
    assert not rig.engine.try_write(0, NEW)
    rig.engine.write(0, NEW)
    assert rig.live()[: len(NEW)] == NEW
    assert lost_blocks(rig) == BAD
    assert rig.numbers.lost_blocks == 3
    assert rig.numbers.state is State.DAMAGED
    told = [(event.kind, event.value, event.offset, event.length) for event in rig.events]
    runs = [(20 * BLOCK_BYTES, 2 * BLOCK_BYTES), (100 * BLOCK_BYTES, BLOCK_BYTES)]
    assert told == [(EventKind.LOST, errno.EIO, *run) for run in runs]


@BOTH
def test_a_write_of_part_of_an_unreadable_block_goes_on(make_rig: MakeRig, durability: Durability) -> None:
    rig = spoilt(make_rig, durability)
    rig.engine.write(20 * BLOCK_BYTES + 512, b"new")
    assert rig.engine.read(20 * BLOCK_BYTES + 512, 3) == b"new"
    with pytest.raises(Damaged):
        rig.reader.read(20 * BLOCK_BYTES, 512)
    assert rig.numbers.lost_blocks == 1


@BOTH
def test_break_write_refuses_and_loses_nothing(make_rig: MakeRig, durability: Durability) -> None:
    rig = spoilt(make_rig, durability, OverflowPolicy.BREAK_WRITE)
    with pytest.raises(OSError, match="Input/output"):
        rig.engine.write(0, NEW)
    assert rig.image_path.read_bytes() == OLD
    assert rig.numbers.state is State.ACTIVE
    assert isinstance(rig.image, SpoiltImage)
    rig.image.bad.clear()
    rig.engine.write(0, NEW)
    assert lost_blocks(rig) == []


@pytest.mark.parametrize(
    ("durability", "end"),
    [(durability, end) for durability in Durability for end in ("kill", "seal")] + [(Durability.POWER, "power")],
)
def test_what_is_lost_stays_lost_and_never_reads_as_new(make_rig: MakeRig, durability: Durability, end: str) -> None:
    rig = spoilt(make_rig, durability)
    rig.engine.write(0, NEW)
    rig.compactor.step()
    if end == "seal":
        rig.seal()
    else:
        rig.abandon()
    if end == "power":
        for name in ("settled", "index"):
            path = rig.store_path / "cut-00000001" / name
            path.write_bytes(bytes(path.stat().st_size))
    opened = rig.open(NEXT_BOOT if end == "power" else b"first boot id 16")
    assert opened.outcome is Outcome.CARRIED_ON
    assert opened.notes == ["blocks of the snapshot that are lost and read as errors: 3"]
    assert lost_blocks(rig) == BAD
    assert rig.numbers.state is State.DAMAGED


@BOTH
def test_check_names_the_lost_blocks(make_rig: MakeRig, durability: Durability) -> None:
    rig = spoilt(make_rig, durability)
    rig.engine.write(0, NEW)
    problems = verify(rig.store_path, Files()).problems
    assert problems == [f"block {block_no}: its preserved content is lost" for block_no in BAD]


@BOTH
def test_lost_blocks_that_are_free_or_released_are_not_missed(make_rig: MakeRig, durability: Durability) -> None:
    rig = spoilt(make_rig, durability)
    rig.engine.write(0, NEW)
    rig.settle_free([(15, 21)])
    rig.engine.cuts.release(100, 101)
    assert rig.numbers.lost_blocks == 1
    assert rig.reader.read(20 * BLOCK_BYTES, BLOCK_BYTES) == bytes(BLOCK_BYTES)
    with pytest.raises(BlockReleased):
        rig.reader.read(100 * BLOCK_BYTES, BLOCK_BYTES)
    rig.engine.cuts.release(21, 22)
    assert rig.numbers.lost_blocks == 0
    assert rig.numbers.state is State.ACTIVE
    assert verify(rig.store_path, Files()).is_whole


def test_a_new_cut_has_lost_nothing(make_rig: MakeRig) -> None:
    rig = spoilt(make_rig, Durability.PROCESS)
    rig.engine.write(0, NEW)
    rig.make_cut()
    assert rig.numbers.lost_blocks == 0
    assert rig.snapshot() == rig.live()


def test_a_block_that_becomes_free_while_it_is_being_lost_is_not_missed(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = spoilt(make_rig, Durability.PROCESS)
    read_into = rig.image.read_into

    def meanwhile_free(views: list[memoryview], offset: int) -> None:
        monkeypatch.undo()
        rig.settle_free([(15, 22)])
        read_into(views, offset)

    monkeypatch.setattr(rig.image, "read_into", meanwhile_free)
    rig.engine.write(20 * BLOCK_BYTES, NEW[: 2 * BLOCK_BYTES])
    assert rig.numbers.lost_blocks == 0
    assert rig.reader.read(20 * BLOCK_BYTES, BLOCK_BYTES) == bytes(BLOCK_BYTES)


def test_a_damaged_slot_that_is_released_hides_no_other_loss(make_rig: MakeRig) -> None:
    rig = spoilt(make_rig, Durability.PROCESS)
    rig.engine.write(20 * BLOCK_BYTES, NEW[:BLOCK_BYTES])
    rig.engine.write(50 * BLOCK_BYTES, NEW[:BLOCK_BYTES])
    assert rig.store is not None
    rig.store.staging.views(rig.control[Counter.COMMITTED_SEQ] - 1, 1)[0][7] ^= 1
    rig.compactor.drain()
    assert rig.numbers.lost_blocks == 2
    rig.engine.cuts.release(50, 51)
    assert (rig.numbers.lost_blocks, rig.numbers.state) == (1, State.DAMAGED)


def refused(rig: Rig, monkeypatch: pytest.MonkeyPatch, bitmap: Bitmap, first_refused: int = 0) -> None:
    """The disk has no room for bits of blocks from that one on."""
    allocate = bitmap.allocate

    def full(first: int, end: int) -> None:
        if end > first_refused:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(first, end)

    monkeypatch.setattr(bitmap, "allocate", full)


def test_a_release_that_fails_excuses_nothing(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = spoilt(make_rig, Durability.PROCESS)
    rig.engine.write(0, NEW)
    lost = rig.numbers.lost_blocks
    refused(rig, monkeypatch, rig.cut.released)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            rig.engine.cuts.release(20, 21)
    assert (rig.numbers.lost_blocks, rig.numbers.state) == (lost, State.DAMAGED)


def test_a_map_that_is_taken_over_in_two_goes_excuses_all_of_it(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = spoilt(make_rig, Durability.PROCESS)
    rig.engine.write(20 * BLOCK_BYTES, NEW[: 2 * BLOCK_BYTES])
    monkeypatch.setattr("cow.live.relief._PIECE_BLOCKS", 8)
    rig.rules.at_rest = False
    with monkeypatch.context() as patched:
        refused(rig, patched, rig.cut.settled, first_refused=8)
        with pytest.raises(OSError, match="No space"):
            rig.settle_free([(0, 40)])
    rig.settle_free([])
    rig.rules.at_rest = True
    assert (rig.numbers.lost_blocks, rig.numbers.state) == (0, State.ACTIVE)
