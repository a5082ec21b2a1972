"""Blocks of a snapshot that is not the newest any more are released: it alone loses them, and their space comes back
as soon as no other has them in it."""

from __future__ import annotations

import pytest
from engine_rig import NEXT_BOOT
from release_rig import BLOCKS, OLD, Chain, MakeRig, new_chain

from cow.disk.layout import Durability
from cow.mount.check import verify


@pytest.fixture(params=list(Durability))
def chain(make_rig: MakeRig, request: pytest.FixtureRequest) -> Chain:
    return new_chain(make_rig, request.param)


def test_it_alone_loses_them(chain: Chain) -> None:
    assert chain.release("b", 8, 24) == 16
    assert chain.release("b", 20, 28) == 4
    chain.check()


def test_what_the_oldest_had_comes_back(chain: Chain) -> None:
    chain.release("a", 0, BLOCKS)
    assert chain.kept_bytes("a") == 0
    chain.check()


def test_the_disk_has_its_space_again(chain: Chain) -> None:
    segments = chain.rig.store_path / "segments"
    before = sum(path.stat().st_blocks for path in segments.iterdir())
    chain.release("a", 0, BLOCKS)
    assert sum(path.stat().st_blocks for path in segments.iterdir()) <= before * 3 // 4


def test_what_the_one_before_has_itself_comes_back(chain: Chain) -> None:
    before = chain.kept_bytes("b")
    chain.release("b", 0, BLOCKS)
    assert 0 < chain.kept_bytes("b") < before
    chain.check()


def test_the_rest_comes_back_when_the_one_before_is_deleted(chain: Chain) -> None:
    chain.release("b", 0, BLOCKS)
    chain.delete("a")
    chain.rig.give_back()
    assert chain.kept_bytes("b") == 0
    chain.check()


def test_the_rest_comes_back_when_the_one_before_overflows(chain: Chain) -> None:
    chain.release("b", 0, BLOCKS)
    assert chain.rig.store is not None
    chain.rig.engine.ending._end_oldest(chain.rig.store.cuts, 0)
    del chain.expected["a"]
    chain.rig.give_back()
    assert chain.kept_bytes("b") == 0
    chain.check()


def test_what_later_ones_have_stays(chain: Chain) -> None:
    before = chain.kept_bytes("b"), chain.kept_bytes("c")
    chain.release("a", 0, BLOCKS)
    assert (chain.kept_bytes("b"), chain.kept_bytes("c")) == before
    chain.check()


def test_what_is_merged_into_it_comes_back(chain: Chain) -> None:
    merged_bytes = chain.kept_bytes("b")
    chain.delete("b")
    chain.release("a", 0, BLOCKS)
    chain.rig.compactor.drain()
    assert chain.merge() == 1
    chain.rig.give_back()
    # But for the records that it had no use for: no entry of it names them.
    assert chain.kept_bytes("a") <= merged_bytes * 3 // 5
    chain.check()


def test_more_comes_back_when_the_one_before_has_more(chain: Chain) -> None:
    chain.write(0, 16, 9)
    chain.cut("d")
    chain.release("c", 0, BLOCKS)
    before = chain.kept_bytes("c")
    # Blocks 0 to 15, which a has too, and b has in c.
    chain.delete("b")
    chain.rig.compactor.drain()
    assert chain.merge() == 1
    chain.rig.give_back()
    assert chain.kept_bytes("c") < before
    chain.check()


@pytest.mark.parametrize("name", ["a", "b"])
def test_nothing_is_wrong_after_a_kill(chain: Chain, name: str) -> None:
    chain.release(name, 0, 40)
    chain.rig.abandon()
    assert chain.rig.open().notes == []
    chain.check()


@pytest.mark.parametrize("name", ["a", "b"])
def test_nothing_is_wrong_after_a_clean_end(chain: Chain, name: str) -> None:
    chain.release(name, 0, 40)
    chain.rig.seal()
    assert verify(chain.rig.store_path, chain.rig.files).problems == []
    assert chain.rig.open().notes == []
    chain.check()


def test_it_survives_a_power_loss(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, durability=Durability.POWER)
    rig.open()
    chain = Chain(rig)
    for number, name in enumerate("abc"):
        chain.cut(name)
        chain.write(16 * number, 16 * number + 32, number + 2)
    chain.release("b", 0, 40)
    rig.abandon()
    assert rig.open(NEXT_BOOT).notes == []
    chain.check()
