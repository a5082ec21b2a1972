"""What is told of cuts that somebody holds: the bytes since each, and whether it may have missed something."""

from __future__ import annotations

import os

import pytest
from chain_rig import BLOCK_BYTES, BLOCKS, OLD, MakeRig
from checkpoints_rig import Held, blocks, new_held
from engine_rig import NEXT_BOOT

from cow.disk.layout import Counter, Durability, State
from cow.disk.segment_files import present_segments
from cow.live.overflow import OverflowPolicy
from cow.mount.check import verify


@pytest.fixture(params=list(Durability))
def chain(make_rig: MakeRig, request: pytest.FixtureRequest) -> Held:
    return new_held(make_rig, request.param)


def test_bytes_since_each_are_told(chain: Held) -> None:
    chain.cut("a")
    chain.hold("a")
    chain.write(0, 4, 2)
    chain.cut("b")
    chain.hold("b")
    chain.write(2, 4, 3)
    assert [one.changed_bytes for one in chain.checkpoints] == [6 * BLOCK_BYTES, 4 * BLOCK_BYTES]


def test_of_a_short_last_block_only_what_there_is_counts(chain: Held) -> None:
    chain.hold("")
    chain.write(BLOCKS - 2, 2, 2)
    assert [one.changed_bytes for one in chain.checkpoints] == [2 * BLOCK_BYTES - 50]


def test_after_an_overflow_it_is_void(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, staging_slots=32)
    rig.open()
    chain = Held(rig)
    chain.hold("")
    rig.make_cut()
    rig.engine.room.set_limit(1)
    chain.write(0, 4, 2)
    rig.engine.room.set_limit(0)
    rig.make_cut()
    assert [one.void for one in chain.checkpoints] == [State.OVERFLOWED]
    chain.reopen()
    assert [one.void for one in chain.checkpoints] == [State.OVERFLOWED]


def test_a_void_one_does_not_make_a_later_one_void(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, staging_slots=32)
    rig.open()
    chain = Held(rig)
    chain.hold("")
    rig.engine.room.set_limit(1)
    chain.write(0, 4, 2)
    rig.engine.room.set_limit(0)
    rig.make_cut()
    chain.hold("")
    assert [one.void for one in chain.checkpoints] == [State.OVERFLOWED, None]


def test_it_is_void_when_the_file_was_cut_short(chain: Held) -> None:
    chain.hold("")
    chain.write(0, 4, 2)
    os.truncate(chain.rig.cut.path / "changed", 0)
    chain.rig.rules.are_kept = False
    assert [one.void for one in chain.checkpoints] == [State.DAMAGED]


def test_it_is_void_when_the_image_was_cut_short(chain: Held) -> None:
    chain.hold("")
    os.truncate(chain.rig.image_path, 1)
    chain.rig.image.look()
    assert [one.void for one in chain.checkpoints] == [State.DAMAGED]


def test_when_the_oldest_gives_way_a_later_checkpoint_stays(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, staging_slots=32, policy=OverflowPolicy.BREAK_OLDEST)
    rig.open()
    rig.control[Counter.SHOWN_HEADERS] = 1 << 60
    chain = Held(rig)
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    held = chain.hold("b")
    chain.cut("c")
    chain.delete("b")
    rig.compactor.drain()
    rig.engine.room.set_limit(4 * BLOCK_BYTES)
    chain.write(20, 4, 3)
    states = {cut.generation: cut.numbers.state for cut in rig.store.cuts} if rig.store else {}
    assert states == {held - 1: State.OVERFLOWED, held: State.ACTIVE, held + 1: State.ACTIVE}
    assert chain.changed(held) == blocks((20, 4))


def test_what_nobody_reads_before_it_is_merged_into_a_checkpoint_is_no_damage(chain: Held) -> None:
    """Its records go first."""
    chain.hold("")
    chain.cut("")
    chain.write(0, 4, 2)
    chain.rig.compactor.drain()
    chain.cut("b")
    chain.rig.compactor.tidy()
    assert present_segments(chain.rig.store_path / "segments") == []
    assert verify(chain.rig.store_path, chain.rig.files).problems == []
    chain.rig.abandon()
    assert chain.rig.open().notes == []


def test_what_nobody_reads_and_a_power_loss_took_is_no_damage(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=Durability.POWER, staging_slots=32)
    rig.open()
    chain = Held(rig)
    chain.hold("")
    chain.cut("")
    chain.write(0, 4, 2)
    index = rig.cut.index.file.path
    chain.cut("b")
    rig.compactor.tidy()
    rig.abandon()
    # It was not flushed; what is settled was.
    index.write_bytes(bytes(index.stat().st_size))
    assert rig.open(NEXT_BOOT).notes == []
    assert verify(rig.store_path, rig.files).problems == []
