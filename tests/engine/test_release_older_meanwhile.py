"""Blocks of a snapshot that is not the newest are released while the compactor and the live server are at work, while
others come and go, and while some are merged."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_rig import SpoiltImage
from release_rig import BLOCKS, OLD, Chain, MakeRig, new_chain

from cow.compact import released
from cow.compact.compactor import Compactor
from cow.compact.giveback import GiveBack
from cow.compact.needs import Needs
from cow.disk.cut import Cut
from cow.disk.layout import Durability, State
from cow.disk.store import Store
from cow.errors import SnapshotEnded
from cow.live import merging
from cow.live.relief import Relief


@pytest.fixture(params=list(Durability))
def chain(make_rig: MakeRig, request: pytest.FixtureRequest) -> Chain:
    return new_chain(make_rig, request.param)


# --- the compactor -------------------------------------------------------------------------------------------


def test_a_compactor_finds_what_was_told_to_the_one_before(chain: Chain) -> None:
    rig = chain.rig
    rig.engine.cuts.release(0, BLOCKS, chain.of("a"))
    assert rig.store is not None
    rig.store.releases.take()  # by one who was killed
    rig.compactor.close()
    rig.compactor = Compactor(rig.store)
    rig.give_back()
    assert chain.kept_bytes("a") == 0


def test_more_ranges_than_are_remembered_all_come_back(chain: Chain) -> None:
    for _ in range(10):
        for block_no in range(BLOCKS):
            chain.rig.engine.cuts.release(block_no, block_no + 1, chain.of("a"))
    chain.rig.give_back()
    assert chain.kept_bytes("a") == 0
    assert chain.rig.compactor.is_done


def test_one_that_is_gone_meanwhile_is_let_go(chain: Chain) -> None:
    rig, cut = chain.rig, chain.of("a")
    rig.engine.cuts.release(0, BLOCKS, cut)
    rig.compactor.give_back()
    chain.delete("a")
    rig.give_back()
    assert not cut.is_open
    assert not cut.path.exists()


def test_nothing_comes_back_while_entries_are_being_copied(chain: Chain) -> None:
    """The next one is hidden and not merged yet."""
    chain.delete("b")
    chain.rig.compactor.drain()
    before = chain.kept_bytes("a")
    chain.release("a", 0, BLOCKS)
    assert chain.kept_bytes("a") == before


def test_beside_the_newest_that_is_hidden_it_comes_back(chain: Chain) -> None:
    """That one is merged after the next cut only."""
    chain.delete("c")
    chain.release("a", 0, BLOCKS)
    assert chain.kept_bytes("a") == 0
    chain.check()


# --- the live server -----------------------------------------------------------------------------------------


def test_one_that_is_deleted_releases_nothing_more(chain: Chain) -> None:
    cuts = [chain.of(name) for name in "ab"]
    for name in "ba":
        chain.delete(name)
    for cut in cuts:
        with pytest.raises(SnapshotEnded):
            chain.rig.engine.cuts.release(0, 1, cut)


@pytest.fixture
def cut_meanwhile(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A function that has the snapshot of that name come while the first of two pieces is being released."""

    def come(name: str) -> None:
        real = Relief._note_released

        def noted(relief: Relief, *arguments: object) -> int:
            monkeypatch.setattr(Relief, "_note_released", real)
            count = real(relief, *arguments)  # type: ignore[arg-type]
            chain.cut(name)
            return count

        monkeypatch.setattr("cow.live.relief._PIECE_BLOCKS", BLOCKS // 2)
        monkeypatch.setattr(Relief, "_note_released", noted)

    return come


def test_the_newest_that_gets_older_meanwhile_is_released(chain: Chain, cut_meanwhile: Callable[[str], None]) -> None:
    cut_meanwhile("d")
    assert chain.release("c", 0, BLOCKS) == BLOCKS
    chain.check()


def test_one_without_a_name_that_is_replaced_meanwhile_has_ended(
    chain: Chain, cut_meanwhile: Callable[[str], None]
) -> None:
    chain.cut("")
    cut = chain.of("")
    cut_meanwhile("d")
    with pytest.raises(SnapshotEnded):
        chain.rig.engine.cuts.release(0, BLOCKS, cut)
    del chain.expected[""]
    chain.check()


def test_a_lost_block_that_is_released_is_missed_by_nobody(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.spoil(1)
    rig.open()
    chain = Chain(rig)
    rig.make_cut("a")
    chain.released["a"] = set()
    chain.write(0, 4, 2)
    assert isinstance(rig.image, SpoiltImage)
    rig.make_cut("b")
    assert chain.of("a").numbers.state is State.DAMAGED
    chain.release("a", 1, 2)
    assert chain.of("a").numbers.state is State.ACTIVE


def test_a_lost_block_that_is_merged_into_a_released_one_is_missed_by_nobody(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.spoil(1)
    rig.open()
    chain = Chain(rig)
    rig.make_cut("a")
    rig.make_cut("b")
    chain.released["a"] = set()
    chain.expected["b"] = b""
    chain.write(0, 4, 2)
    rig.make_cut("c")
    chain.release("a", 0, 4)
    chain.delete("b")
    rig.compactor.drain()
    assert chain.merge() == 1
    assert chain.of("a").numbers.state is State.ACTIVE


def test_what_is_counted_while_one_is_merged_is_right(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    chain.delete("b")
    chain.rig.compactor.drain()

    real = merging.merge_maps

    def copied(store: Store, generation: int) -> None:
        real(store, generation)
        chain.release("a", 0, 24)

    monkeypatch.setattr("cow.live.chain.merge_maps", copied)
    with chain.rig.rules.changing():
        assert chain.merge() == 1
    chain.check()


def test_what_is_released_while_the_compactor_looks_stays_for_the_one_before(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.rig.give_back()
    chain.rig.engine.cuts.name(chain.of("b").generation, "other")

    class ReleasedMeanwhile(GiveBack):
        def __init__(self, store: Store, cut: Cut, needs: Needs) -> None:
            super().__init__(store, cut, needs)
            monkeypatch.undo()
            chain.rig.engine.cuts.release(0, BLOCKS, cut)
            chain.released["c"] |= set(range(BLOCKS))

    monkeypatch.setattr(released, "GiveBack", ReleasedMeanwhile)
    chain.rig.give_back()
    chain.expected["other"], chain.released["other"] = chain.expected.pop("b"), chain.released.pop("b")
    chain.check()
