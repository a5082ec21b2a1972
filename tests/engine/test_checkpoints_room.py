"""What a cut that somebody holds takes for readers: nothing, once it is over, but what older snapshots need."""

from __future__ import annotations

import pytest
from chain_rig import OLD, MakeRig
from checkpoints_rig import Held, new_held

from cow.disk.layout import CutCounter, Durability
from cow.disk.served import Preserved, count_preserved, served_before


@pytest.fixture(params=list(Durability))
def chain(make_rig: MakeRig, request: pytest.FixtureRequest) -> Held:
    return new_held(make_rig, request.param)


def test_a_checkpoint_alone_owes_nothing(chain: Held) -> None:
    chain.hold("")
    chain.expected[""] = OLD
    chain.delete("")
    chain.write(0, 20, 2)
    assert chain.rig.cut.index.count() == 0


def test_the_newest_that_is_deleted_preserves_only_what_older_ones_need(chain: Held) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    chain.hold("b")
    chain.delete("b")
    chain.write(0, 12, 3)
    assert chain.rig.cut.index.count() == 4
    chain.check()


def test_the_room_of_a_held_one_comes_back_when_it_is_deleted(chain: Held) -> None:
    chain.cut("a")
    chain.hold("a")
    chain.write(0, 20, 2)
    chain.cut("b")
    chain.rig.compactor.drain()
    chain.delete("a")
    chain.rig.compactor.step()
    chain.rig.give_back()
    assert list((chain.rig.store_path / "segments").iterdir()) == []
    assert chain.rig.engine.size.shown().stored_bytes == 0


def test_the_room_of_the_newest_comes_back_when_it_is_deleted(chain: Held) -> None:
    chain.hold("")
    chain.write(0, 20, 2)
    chain.rig.compactor.drain()
    chain.expected[""] = OLD
    chain.delete("")
    chain.rig.give_back()
    assert chain.rig.engine.size.shown().stored_bytes == 0


def test_what_older_ones_need_of_it_stays(chain: Held) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    chain.hold("b")
    for first in (4, 8):
        chain.write(first, 4, 3)
        chain.rig.compactor.drain()
    chain.cut("c")
    chain.delete("b")
    chain.rig.compactor.step()
    chain.rig.give_back()
    chain.check()
    assert chain.rig.store is not None
    numbers = chain.rig.store.cuts[1].numbers
    assert 0 < numbers[CutCounter.RETURNED_BYTES] < numbers[CutCounter.STORED_BYTES]


def test_behind_a_checkpoint_that_nobody_reads_through_a_release_gives_room_back(chain: Held) -> None:
    chain.hold("")
    chain.cut("b")
    chain.rig.engine.cuts.release(0, 16)
    chain.write(0, 20, 2)
    assert chain.rig.cut.index.count() == 4


def test_what_a_snapshot_behind_a_checkpoint_holds_it_holds_alone(chain: Held) -> None:
    chain.hold("")
    chain.cut("b")
    chain.write(0, 8, 2)
    store = chain.rig.store
    assert store is not None
    assert count_preserved(store.cut, served_before(store.header, store.older)) == Preserved(8, 8)


def test_behind_a_checkpoint_a_release_leaves_what_older_ones_need(chain: Held) -> None:
    chain.cut("a")
    chain.write(0, 4, 2)
    chain.cut("b")
    chain.hold("b")
    chain.write(8, 4, 3)
    chain.cut("c")
    chain.delete("b")
    chain.rig.engine.cuts.release(0, 16)
    del chain.expected["c"]
    chain.write(0, 20, 4)
    assert chain.rig.cut.index.count() == 12
    chain.check()
