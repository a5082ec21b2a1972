"""Several snapshots at once that lose what they held, or some of it: no other one's blocks ever stand in for it."""

from __future__ import annotations

import contextlib
import os
import shutil

import pytest
from chain_rig import BLOCK_BYTES, BLOCKS, OLD, Chain, MakeRig, new_chain, read_blocks
from engine_rig import BOOT, NEXT_BOOT, SpoiltImage, pattern

from cow.disk.layout import Durability, State
from cow.errors import Damaged, SnapshotLost


@pytest.fixture(params=list(Durability))
def chain(make_rig: MakeRig, request: pytest.FixtureRequest) -> Chain:
    return new_chain(make_rig, request.param)


def test_an_overflow_ends_all_of_them(chain: Chain) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    chain.rig.compactor.drain()
    chain.rig.engine.room.set_limit(1)
    chain.rig.engine.write(0, pattern(BLOCK_BYTES, 5))
    assert chain.rig.store is not None
    assert not any(cut.numbers.is_kept for cut in chain.rig.store.cuts)


@pytest.mark.parametrize("is_merged", [False, True])
@pytest.mark.parametrize("boot_id", [BOOT, NEXT_BOOT])
def test_a_damaged_copy_is_never_replaced_by_a_later_one(chain: Chain, is_merged: bool, boot_id: bytes) -> None:
    if chain.rig.durability is Durability.PROCESS and boot_id is NEXT_BOOT:
        pytest.skip("nothing survives that")
    for name in ("a", "b", "last"):
        chain.cut(name)
        chain.write(0, 16, len(chain.expected) + 1)
    chain.write(16, 8, 9)
    chain.rig.compactor.drain()
    (segment,) = (chain.rig.store_path / "segments").glob(f"*-{chain.generation('a'):08d}")
    chain.delete("b")
    if is_merged:
        assert chain.merge() == 1
    chain.rig.rules.are_kept = False
    chain.rig.abandon()
    segment.unlink()
    chain.rig.open(boot_id)
    expected = chain.expected["a"]
    found = read_blocks(chain, "a")
    assert sorted(found) == list(range(16, BLOCKS))
    for block_no, content in found.items():
        assert content == expected[block_no * BLOCK_BYTES :][:BLOCK_BYTES], block_no
    assert chain.read("last") == chain.expected["last"]


def test_a_released_copy_is_never_replaced_by_a_later_one(make_rig: MakeRig) -> None:
    """It is damaged, and the snapshot before needs it; then the power is lost."""
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=Durability.POWER)
    rig.open()
    chain = Chain(rig)
    for name in ("a", "b", "c", "last"):
        chain.cut(name)
        chain.write(0 if name in "bc" else 32, 8, len(chain.expected) + 1)
        if name == "b":
            rig.engine.cuts.release(0, 8)
    (segment,) = (rig.store_path / "segments").glob(f"*-{chain.generation('b'):08d}")
    chain.delete("c")
    assert chain.merge() == 1
    rig.rules.are_kept = False
    rig.abandon()
    segment.unlink()
    rig.open(NEXT_BOOT)
    with pytest.raises(Damaged):
        chain.read("a", 1)


def test_a_block_that_was_lost_stays_so_whatever_is_merged(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, staging_slots=32)
    rig.spoil(3)
    rig.open()
    chain = Chain(rig)
    rig.make_cut("a")
    chain.write(3, 1, 2)
    chain.cut("b")
    chain.write(3, 1, 3)
    chain.cut("last")
    chain.delete("b")
    assert chain.merge() == 1
    rig.abandon()
    rig.open()
    chain.expected["a"] = OLD
    assert sorted(set(range(BLOCKS)) - set(read_blocks(chain, "a"))) == [3]


def overflow(chain: Chain) -> None:
    """Two with a name, and what they held is lost."""
    for name in "ab":
        chain.cut(name)
        chain.write(0, 8, 2)
    chain.rig.compactor.drain()
    chain.rig.engine.room.set_limit(1)
    chain.rig.engine.write(8 * BLOCK_BYTES, pattern(BLOCK_BYTES, 5))
    chain.expected.clear()


def test_what_was_lost_takes_no_room_from_the_next(chain: Chain) -> None:
    overflow(chain)
    chain.rig.compactor.tidy()
    assert list((chain.rig.store_path / "segments").iterdir()) == []
    chain.rig.engine.room.set_limit(8 * BLOCK_BYTES)
    chain.cut("c")
    assert chain.rig.engine.size.shown().stored_bytes == 0
    chain.write(0, 4, 6)
    chain.check()


def test_what_was_lost_is_removed_also_when_the_next_comes_first(chain: Chain) -> None:
    overflow(chain)
    chain.rig.engine.room.set_limit(0)
    chain.cut("c")
    chain.rig.compactor.drain()
    assert list((chain.rig.store_path / "segments").iterdir()) == []
    chain.write(0, 4, 6)
    chain.check()


def test_what_is_free_costs_nothing_whatever_was_lost_before(chain: Chain) -> None:
    overflow(chain)
    chain.rig.engine.room.set_limit(0)
    chain.cut("c")
    assert chain.rig.settle_free([(16, 32)]) == 16
    chain.write(16, 16, 6)
    assert chain.rig.cut.index.count() == 0
    chain.rig.abandon()
    chain.rig.open()
    assert chain.rig.cut.index.count() == 0


def test_what_an_image_lost_is_missing_in_all_before_whatever_a_later_one_preserves(chain: Chain) -> None:
    chain.cut("a")
    chain.cut("b")
    os.truncate(chain.rig.image_path, 20 * BLOCK_BYTES)
    with pytest.raises(OSError, match="cut short"):
        chain.rig.engine.write(40 * BLOCK_BYTES, b"x")
    os.truncate(chain.rig.image_path, len(OLD))
    chain.cut("c")
    chain.write(0, BLOCKS, 2)
    assert chain.read("c") == chain.expected["c"]
    for name in "ab":
        assert chain.read(name, 20) == chain.expected[name][: 20 * BLOCK_BYTES]
        with pytest.raises(Damaged, match="cut short"):
            chain.read(name)


def test_what_an_image_lost_is_missing_also_after_a_merge(chain: Chain) -> None:
    chain.cut("a")
    chain.cut("b")
    image = chain.rig.image
    os.truncate(chain.rig.image_path, 32 * BLOCK_BYTES)
    with contextlib.suppress(OSError):
        image.check_whole()
    with contextlib.suppress(OSError):
        chain.rig.engine.read(40 * BLOCK_BYTES, BLOCK_BYTES)
    os.truncate(chain.rig.image_path, len(OLD))
    chain.rig.make_cut("c")
    chain.write(32, 16, 3)
    chain.rig.make_cut("d")
    chain.expected.clear()
    for gone in chain.rig.engine.cuts.forget(chain.generation("b")):
        gone.let_go()
    assert chain.merge() == 1
    assert sorted(read_blocks(chain, "a")) == list(range(32))


def test_one_whose_files_are_gone_is_called_damaged(chain: Chain) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    chain.write(4, 8, 3)
    generation = chain.generation("a")
    chain.rig.seal()
    shutil.rmtree(chain.rig.store_path / f"cut-{generation:08d}")
    chain.rig.rules.are_kept = False
    chain.rig.open()
    assert chain.rig.store is not None
    assert chain.rig.store.cuts[0].numbers.state is State.DAMAGED
    with pytest.raises(SnapshotLost):
        chain.read("a")
    assert chain.read("b") == chain.expected["b"]


def cut_image_short(chain: Chain, blocks: int) -> None:
    """What lies behind is lost, and zeros from the next cut on."""
    os.truncate(chain.rig.image_path, blocks * BLOCK_BYTES)
    chain.rig.image.look()
    os.truncate(chain.rig.image_path, len(OLD))


def test_what_an_image_lost_stays_missing_when_the_cut_that_noted_it_is_merged(chain: Chain) -> None:
    chain.cut("a")
    chain.cut("b")
    cut_image_short(chain, 20)
    chain.delete("b")
    chain.cut("c")
    assert chain.merge() == 1
    assert chain.read("a", 20) == chain.expected["a"][: 20 * BLOCK_BYTES]
    with pytest.raises(Damaged, match="cut short"):
        chain.read_at("a", 20)


@pytest.mark.parametrize("is_hidden_again", [False, True])
@pytest.mark.parametrize("end", ["none", "kill", "power"])
def test_what_an_image_lost_is_not_replaced_by_what_a_later_one_preserved(
    chain: Chain, end: str, is_hidden_again: bool
) -> None:
    if end == "power" and chain.rig.durability is Durability.PROCESS:
        return
    chain.cut("a")
    if is_hidden_again:
        chain.cut("b")
    cut_image_short(chain, 20)
    chain.cut("c")
    chain.write(10, 20, 2)
    chain.cut("d")
    for name in ("b", "c") if is_hidden_again else ("c",):
        chain.delete(name)
    if end == "none":
        assert chain.merge()
    else:
        chain.rig.abandon()
        chain.rig.open(NEXT_BOOT if end == "power" else BOOT)
    for _ in range(2):
        assert chain.read("a", 20) == chain.expected["a"][: 20 * BLOCK_BYTES]
        for block_no in range(20, BLOCKS):
            with pytest.raises(Damaged):
                chain.read_at("a", block_no)
        chain.merge()
    assert chain.read("d") == chain.expected["d"]


def test_what_a_later_one_preserved_is_not_asked_of_the_image(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, staging_slots=32)
    rig.spoil()
    rig.open()
    chain = Chain(rig)
    chain.cut("a")
    chain.cut("b")
    chain.write(3, 1, 2)
    assert isinstance(rig.image, SpoiltImage)
    rig.image.bad.add(3)
    assert chain.read("a") == chain.expected["a"]
