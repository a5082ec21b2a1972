"""Cuts that somebody holds, until he lets go: what was written since stays known when the snapshot is over."""

from __future__ import annotations

import pytest
from chain_rig import OLD, MakeRig
from checkpoints_rig import HOLDER, OTHER, Held, blocks, new_held

from cow.disk.layout import Counter, Durability, State
from cow.errors import SnapshotEnded, SnapshotLost


@pytest.fixture(params=list(Durability))
def chain(make_rig: MakeRig, request: pytest.FixtureRequest) -> Held:
    return new_held(make_rig, request.param)


# --- what stays ----------------------------------------------------------------------------------------------


def test_a_held_one_that_is_deleted_stays_for_what_was_written_since(chain: Held) -> None:
    chain.cut("a")
    held = chain.hold("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    chain.write(4, 8, 3)
    chain.delete("a")
    chain.merge()
    assert chain.listed == [held, held + 1]
    assert chain.changed(held) == blocks((0, 12))
    chain.check()


def test_a_held_one_is_over_for_its_readers_when_it_is_deleted(chain: Held) -> None:
    chain.cut("a")
    chain.hold("a")
    reader = chain.rig.reader
    chain.delete("a")
    with pytest.raises((SnapshotEnded, SnapshotLost)):
        reader.read(0, 1)


def test_a_held_one_without_a_name_stays_when_it_is_replaced(chain: Held) -> None:
    held = chain.hold("")
    chain.write(0, 8, 2)
    chain.rig.make_cut()
    chain.write(20, 2, 2)
    assert chain.listed == [held, held + 1]
    assert chain.changed(held) == blocks((0, 8), (20, 2))


def test_it_is_not_merged_into_an_older_one(chain: Held) -> None:
    chain.cut("a")
    chain.cut("b")
    held = chain.hold("b")
    chain.write(0, 8, 2)
    chain.cut("c")
    chain.delete("b")
    assert chain.merge() == 0
    assert held in chain.listed
    chain.check()


def test_what_is_behind_it_is_merged_into_it(chain: Held) -> None:
    chain.cut("a")
    chain.cut("b")
    held = chain.hold("b")
    chain.write(0, 8, 2)
    chain.cut("c")
    chain.write(4, 12, 3)
    chain.cut("d")
    chain.delete("b")
    chain.delete("c")
    assert chain.merge() == 1
    assert chain.changed(held) == blocks((0, 16))
    chain.check()


def test_a_hidden_one_of_which_nobody_reads_gives_a_checkpoint_its_changes_alone(chain: Held) -> None:
    held = chain.hold("")
    chain.rig.make_cut()
    chain.write(0, 8, 2)
    chain.rig.make_cut()
    assert chain.merge() == 1
    assert chain.rig.store is not None
    assert (chain.rig.store.cuts[0].generation, chain.rig.store.cuts[0].index.count()) == (held, 0)
    assert chain.changed(held) == blocks((0, 8))


def test_older_ones_read_through_it(chain: Held) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    chain.hold("b")
    chain.write(4, 12, 3)
    chain.cut("c")
    chain.write(10, 12, 4)
    chain.delete("b")
    chain.merge()
    chain.rig.give_back()
    chain.check()


def test_the_newest_that_is_deleted_notes_what_is_written(chain: Held) -> None:
    held = chain.hold("")
    chain.expected[""] = OLD
    chain.delete("")
    chain.write(3, 4, 2)
    assert chain.rig.numbers.state is State.ACTIVE
    assert chain.changed(held) == blocks((3, 4))


def test_the_newest_that_is_deleted_behind_a_checkpoint_notes_what_is_written(chain: Held) -> None:
    held = chain.hold("")
    chain.cut("b")
    chain.delete("b")
    chain.write(3, 4, 2)
    chain.rig.make_cut()
    chain.merge()
    assert chain.listed == [held, held + 2]
    assert chain.changed(held) == blocks((3, 4))


# --- letting go -----------------------------------------------------------------------------------------------


def test_the_oldest_goes_when_its_last_holder_lets_go(chain: Held) -> None:
    held = chain.hold("")
    chain.hold("", OTHER)
    chain.cut("b")
    chain.let_go()
    assert held in chain.listed
    chain.let_go(holder=OTHER)
    assert chain.listed == [held + 1]


def test_one_behind_a_snapshot_is_merged_when_its_last_holder_lets_go(chain: Held) -> None:
    chain.cut("a")
    chain.write(0, 4, 2)
    chain.cut("b")
    held = chain.hold("b")
    chain.write(2, 4, 3)
    chain.cut("c")
    chain.delete("b")
    chain.merge()
    chain.let_go()
    assert chain.merge() == 1
    assert held not in chain.listed
    assert chain.changed(chain.generation("a")) == blocks((0, 6))
    chain.check()


def test_all_but_those_that_are_named_are_let_go(chain: Held) -> None:
    held = []
    for name in "abc":
        chain.cut(name)
        held.append(chain.hold(name))
    for name in "abc":
        chain.delete(name)
    chain.let_go(held[1])
    chain.merge()
    assert [one.facts.generation for one in chain.checkpoints] == [held[1]]


def test_a_snapshot_that_is_there_stays_one_when_it_is_let_go(chain: Held) -> None:
    chain.cut("a")
    chain.hold("a")
    chain.let_go()
    assert chain.checkpoints == []
    chain.check()


def test_a_checkpoint_alone_that_is_let_go_leaves_none(chain: Held) -> None:
    chain.hold("")
    chain.expected[""] = OLD
    chain.delete("")
    chain.let_go()
    assert chain.rig.numbers.state is State.NONE


def test_what_is_gone_cannot_be_held(chain: Held) -> None:
    chain.cut("a")
    gone = chain.id_of(chain.generation("a"))
    chain.cut("b")
    chain.delete("a")
    with pytest.raises(SnapshotEnded):
        chain.rig.engine.cuts.hold_checkpoint(gone, HOLDER)


def test_a_checkpoint_can_be_held_by_another(chain: Held) -> None:
    held = chain.hold("")
    snapshot_id = chain.id_of(held)
    chain.cut("b")
    chain.rig.engine.cuts.hold_checkpoint(snapshot_id, OTHER)
    assert [one.facts.holders for one in chain.checkpoints] == [(HOLDER, OTHER)]


def test_holding_it_again_changes_nothing(chain: Held) -> None:
    chain.hold("")
    headers = chain.rig.control[Counter.HEADERS]
    chain.hold("")
    assert chain.rig.control[Counter.HEADERS] == headers
