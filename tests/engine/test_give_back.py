"""What was preserved of released blocks is given back by the compactor, whenever it hears of that."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from engine_rig import NEXT_BOOT, Rig, pattern

from cow.compact.compactor import Compactor
from cow.compact.giveback import GiveBack
from cow.disk.codec import encode
from cow.disk.cut import Cut
from cow.disk.files import Files
from cow.disk.header import Header, cut_header, write_header
from cow.disk.layout import CutCounter, Durability, State
from cow.errors import BlockReleased
from cow.live.cutting import discard_cut, prepare_cut

BLOCK_BYTES, BLOCKS = 4096, 64
OLD, NEW = pattern(BLOCKS * BLOCK_BYTES, seed=1), pattern(BLOCKS * BLOCK_BYTES, seed=2)
MakeRig = Callable[..., Rig]


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    """All blocks preserved, their content in the ring."""
    rig = make_rig(OLD, staging_slots=4 * BLOCKS)
    rig.open()
    rig.write(0, NEW)
    return rig


def release_within_store(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks are released in the compactor's next step, after it has looked which are."""
    real = rig.compactor._records._writer.append

    def append(records: Iterable[bytes]) -> object:
        monkeypatch.undo()
        rig.engine.cuts.release(0, BLOCKS)
        return real(records)

    monkeypatch.setattr(rig.compactor._records._writer, "append", append)


def kept_bytes(rig: Rig) -> int:
    return rig.numbers[CutCounter.STORED_BYTES] - rig.numbers[CutCounter.RETURNED_BYTES]


def assert_all_given_back(rig: Rig) -> None:
    rig.give_back()
    assert kept_bytes(rig) == 0
    with pytest.raises(BlockReleased):
        rig.reader.read(0, BLOCK_BYTES)


def test_what_was_stored_before_is_given_back(rig: Rig) -> None:
    rig.compactor.drain()
    rig.engine.cuts.release(0, BLOCKS)
    assert_all_given_back(rig)


def test_a_record_made_meanwhile_is_given_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    release_within_store(rig, monkeypatch)
    rig.compactor.drain()
    assert kept_bytes(rig) > 0
    assert_all_given_back(rig)


def store_in_haste(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cow.compact.compactor.acceleration_for", lambda share: 0)
        rig.compactor.drain()


def test_a_record_squeezed_meanwhile_is_counted_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    store_in_haste(rig, monkeypatch)
    release_within_store(rig, monkeypatch)
    while rig.compactor.squeeze():
        pass
    assert_all_given_back(rig)


def test_a_record_released_before_it_is_squeezed_is_counted_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    store_in_haste(rig, monkeypatch)
    monkeypatch.setattr("cow.compact.squeeze._BYTES_AT_ONCE", 64 << 10)
    rig.compactor.squeeze()
    rig.engine.cuts.release(0, BLOCKS)
    while rig.compactor.squeeze():
        pass
    assert_all_given_back(rig)


def test_a_compactor_gives_back_what_was_released_before_it_began(rig: Rig) -> None:
    rig.compactor.drain()
    rig.engine.cuts.release(0, BLOCKS)
    assert rig.store is not None
    rig.store.releases.take()  # by one who was killed
    rig.compactor.close()
    rig.compactor = Compactor(rig.store)
    assert_all_given_back(rig)


def test_more_ranges_than_are_remembered_are_all_given_back(rig: Rig) -> None:
    rig.compactor.drain()
    for _ in range(10):
        for block_no in range(BLOCKS):
            rig.engine.cuts.release(block_no, block_no + 1)
    assert_all_given_back(rig)
    assert rig.compactor.is_done


def test_the_next_cut_owes_nothing_for_what_was_released_before(rig: Rig) -> None:
    rig.compactor.drain()
    rig.engine.cuts.release(0, BLOCKS)
    rig.make_cut()
    rig.write(0, OLD)
    rig.compactor.drain()
    rig.give_back()
    assert rig.numbers[CutCounter.RETURNED_BYTES] == 0
    assert rig.snapshot() == NEW


def test_a_segment_that_is_appended_to_stays(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, durability=Durability.POWER)
    rig.open()
    rig.write(0, NEW[: 8 * BLOCK_BYTES])
    rig.engine.cuts.release(0, 8)
    rig.give_back()
    rig.write(8 * BLOCK_BYTES, NEW[: 8 * BLOCK_BYTES])
    assert rig.cut.segments.numbers() == [1]
    rig.abandon()
    rig.open(NEXT_BOOT)
    assert rig.reader.read(8 * BLOCK_BYTES, len(OLD) - 8 * BLOCK_BYTES) == OLD[8 * BLOCK_BYTES :]


def test_nothing_is_given_back_whose_release_a_power_loss_would_undo(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig(OLD, durability=Durability.POWER)
    rig.open()
    rig.write(0, NEW)

    def refused(fd: int) -> None:
        if os.path.samestat(os.fstat(fd), os.stat(rig.cut.path / "released")):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(rig.files, "sync", refused)
        rig.rules.at_rest = False
        with pytest.raises(OSError, match="Input/output"):
            rig.engine.cuts.release(0, BLOCKS)
        rig.give_back()
    assert rig.numbers[CutCounter.RETURNED_BYTES] == 0
    rig.rules.at_rest = True
    rig.engine.cuts.release(0, BLOCKS)
    assert_all_given_back(rig)


def test_records_that_share_pages_are_given_back_one_by_one(make_rig: MakeRig) -> None:
    """Each is smaller than a page, and none is released together with its neighbour in the segment."""
    half = b"".join(pattern(2048, seed=seed) + bytes(2048) for seed in range(BLOCKS))
    rig = make_rig(half, staging_slots=4 * BLOCKS)
    rig.open()
    for first in (0, 1):
        for block_no in range(first, BLOCKS, 2):
            rig.write(block_no * BLOCK_BYTES, NEW[:BLOCK_BYTES])
        rig.compactor.drain()
    before = rig.cut.segments.path(1).stat().st_blocks
    for block_no in range(BLOCKS - 1):
        rig.engine.cuts.release(block_no, block_no + 1)
        rig.give_back()
    assert rig.cut.segments.path(1).stat().st_blocks <= before // 8
    last = (BLOCKS - 1) * BLOCK_BYTES
    assert rig.reader.read(last, BLOCK_BYTES) == half[last:]


def test_a_released_part_is_given_back_although_the_rest_failed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.compactor.drain()
    monkeypatch.setattr("cow.live.relief._PIECE_BLOCKS", BLOCKS // 2)
    allocate = rig.cut.released.allocate

    def refused(first: int, end: int) -> None:
        if first:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(first, end)

    monkeypatch.setattr(rig.cut.released, "allocate", refused)
    before = kept_bytes(rig)
    with pytest.raises(OSError, match="No space"):
        rig.engine.cuts.release(0, BLOCKS)
    rig.give_back()
    assert 0 < kept_bytes(rig) < before


@pytest.mark.parametrize("is_first", [True, False], ids=["released first", "moved first"])
def test_a_slot_that_was_damaged_is_lost_until_it_is_released(rig: Rig, is_first: bool) -> None:
    assert rig.store is not None
    rig.store.staging.views(0, 1)[0][:8] = b"damaged!"
    if is_first:
        rig.engine.cuts.release(0, 1)
    rig.compactor.drain()
    assert rig.numbers.lost_blocks == (0 if is_first else 1)
    rig.engine.cuts.release(0, 1)
    assert rig.numbers.lost_blocks == 0
    assert rig.numbers.state is State.ACTIVE


def test_what_is_left_of_a_released_record_forges_none(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    size, rng = 512, random.Random(4)
    old = bytearray(pattern(BLOCKS * size))
    forged = encode(50, 1, 1, rng.randbytes(size), seed=0)
    old[:size] = rng.randbytes(size)
    # Where the page is not punched that a part of it shares with the next record.
    old[2 * size : 34 * size] = (rng.randbytes(15768) + forged + rng.randbytes(32 * size))[: 32 * size]
    rig = make_rig(bytes(old), durability=Durability.POWER, block_bytes=size, staging_slots=512)
    rig.open()
    for block_no, count in ((0, 1), (2, 32), (40, 1)):
        rig.write(block_no * size, b"n" * count * size)
    rig.engine.cuts.release(2, 34)
    # Killed when its header was zeros, and nothing else.
    monkeypatch.setattr(GiveBack, "_make_hole", lambda self, fd, start, stop: None)
    rig.give_back()
    assert forged[:40] in rig.cut.segments.path(1).read_bytes()
    rig.abandon()
    rig.open(NEXT_BOOT)
    assert rig.reader.read(50 * size, size) == old[50 * size : 51 * size]


def test_a_compactor_follows_also_when_older_segments_cannot_be_removed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.compactor.drain()
    rig.make_cut()
    rig.write(0, OLD)

    def refused(path: str) -> list[str]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr("cow.disk.segments.os.listdir", refused)
        rig.compactor.step()
    rig.compactor.drain()
    assert rig.snapshot() == NEW
    assert rig.numbers[CutCounter.STORED_BYTES] > 0


def test_a_compactor_that_begins_while_a_cut_may_be_refused_removes_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.compactor.drain()
    store = rig.store
    assert store is not None
    refused: list[Header] = []

    def begins_then_refused(path: Path, header: Header, files: Files, *, durable: bool) -> None:
        write_header(path, header, files, durable=durable)
        if not refused:
            refused.append(header)
            present = store.present(writable=True)
            Compactor(present).close()
            present.cut.let_go()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    cut = prepare_cut(store)
    monkeypatch.setattr("cow.live.cutting.write_header", begins_then_refused)
    with pytest.raises(OSError, match="Input/output"):
        rig.engine.begin_cut(cut, cut_header(rig.image, cut.generation))
    discard_cut(cut)
    assert rig.snapshot() == OLD


def test_nothing_is_merged_while_what_it_has_is_given_back(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an entry would be copied that names a record which is gone a moment later."""
    rig = make_rig(OLD, staging_slots=4 * BLOCKS)
    rig.open()
    rig.make_cut("a")
    reader = rig.reader
    rig.make_cut("b")
    rig.write(0, NEW)
    rig.compactor.drain()
    rig.engine.cuts.release(0, BLOCKS)
    generation, real, merged = rig.cut.generation, GiveBack.give_back, list[Cut | None]()

    def merge_first(give_back: GiveBack, first: int, end: int) -> None:
        monkeypatch.undo()
        rig.make_cut("c")
        rig.engine.cuts.forget(generation)
        merged.append(rig.engine.cuts.merge())
        real(give_back, first, end)

    monkeypatch.setattr(GiveBack, "give_back", merge_first)
    rig.give_back()
    assert reader.read(0, len(OLD)) == OLD
    assert merged == [None]
    (gone,) = [rig.engine.cuts.merge()]
    assert gone is not None
    gone.let_go()
    assert reader.read(0, len(OLD)) == OLD
