"""Several snapshots at once: kept by a name, read through the later ones, deleted and merged in any order."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from chain_rig import BLOCK_BYTES, OLD, Chain, MakeRig, new_chain
from engine_rig import BOOT, NEXT_BOOT

from cow.disk.cut import Cut
from cow.disk.layout import LOST_ENTRY, Durability
from cow.errors import SnapshotEnded, SnapshotLost


def segments_open(chain: Chain) -> list[str]:
    """One for each descriptor."""
    paths = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            paths.append(os.readlink(f"/proc/self/fd/{name}"))
    return [path for path in paths if path.startswith(str(chain.rig.store_path / "segments"))]


@pytest.fixture(params=list(Durability))
def chain(make_rig: MakeRig, request: pytest.FixtureRequest) -> Chain:
    return new_chain(make_rig, request.param)


def test_each_snapshot_is_of_its_own_instant(chain: Chain) -> None:
    for number, name in enumerate("abcd"):
        chain.cut(name)
        chain.write(number * 7, 20, number + 2)
        chain.check()
    chain.merge()
    chain.check()


@pytest.mark.parametrize("order", ["abcd", "dcba", "bdac", "cbda"])
def test_deleted_in_any_order_the_others_stay_right(chain: Chain, order: str) -> None:
    for number, name in enumerate("abcd"):
        chain.cut(name)
        chain.write(number * 7, 20, number + 2)
    chain.cut("last")
    for name in order:
        chain.delete(name)
        chain.check()
        chain.merge()
        chain.check()
    assert chain.rig.store is not None
    assert len(chain.rig.store.cuts) == 1
    assert sorted(path.name for path in chain.rig.store_path.glob("cut-*")) == ["cut-00000006"]


def test_a_deleted_one_ends_for_its_readers_alone(chain: Chain) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    reader = chain.rig.reader
    chain.write(4, 8, 3)
    chain.cut("c")
    chain.delete("b")
    with pytest.raises(SnapshotEnded):
        reader.read(0, 1)
    chain.check()


def test_a_reader_goes_on_through_cuts_that_come_and_go(chain: Chain) -> None:
    chain.cut("a")
    reader, expected = chain.rig.reader, chain.expected["a"]
    for number in range(6):
        chain.write(number * 5, 12, number + 2)
        assert reader.read(0, len(OLD)) == expected
        chain.cut(f"later{number}")
        assert reader.read(0, len(OLD)) == expected
    for number in (3, 1, 5, 0):
        chain.delete(f"later{number}")
        chain.merge()
        assert reader.read(0, len(OLD)) == expected


def test_an_unnamed_one_that_gets_a_name_is_not_replaced(chain: Chain) -> None:
    chain.cut("")
    assert chain.rig.store is not None
    chain.rig.engine.cuts.name(chain.rig.cut.generation, "late")
    chain.expected = {"late": chain.expected[""]}
    chain.write(0, 8, 2)
    chain.cut("next")
    chain.write(4, 8, 3)
    chain.check()
    chain.rig.abandon()
    chain.rig.open()
    chain.check()


def test_a_reader_lets_go_of_cuts_that_were_merged(chain: Chain) -> None:
    chain.cut("a")
    reader, expected = chain.rig.reader, chain.expected["a"]
    generations = []
    for number in range(4):
        chain.write(number * 5, 12, number + 2)
        chain.cut(f"later{number}")
        generations.append(chain.generation(f"later{number}"))
        assert reader.read(0, len(OLD)) == expected
        chain.delete(f"later{number}")
        chain.merge()
    assert reader.read(0, len(OLD)) == expected
    assert chain.rig.store is not None
    assert [chain.rig.store.looked_through.try_hold(one) for one in generations[:-2]] == [None, None]


def test_what_was_merged_and_then_moved_is_found_where_it_is_now(chain: Chain) -> None:
    chain.cut("a")
    reader, expected = chain.rig.reader, chain.expected["a"]
    chain.cut("b")
    chain.write(8, 8, 2)
    chain.cut("c")
    assert reader.read(0, len(OLD)) == expected
    store = chain.rig.store
    assert store is not None
    b = store.open_cut(chain.generation("b"), writable=True)
    chain.delete("b")
    assert chain.merge() == 1
    # Nobody keeps that up to date any more.
    b.index.set_entries(8, [LOST_ENTRY] * 8)
    b.let_go()
    assert reader.read(0, len(OLD)) == expected


def test_a_list_of_cuts_that_cannot_be_opened_now_stays_as_it_was(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain.cut("a")
    reader, expected = chain.rig.reader, chain.expected["a"]
    for number, name in enumerate("bcd"):
        chain.write(number * 8, 12, number + 2)
        chain.cut(name)
    chain.write(8, 40, 9)
    store = chain.rig.store
    assert store is not None
    opened = store.looked_through.hold

    def hold(generation: int, open_it: Callable[[], Cut]) -> Cut:
        if generation == chain.generation("c"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return opened(generation, open_it)

    with monkeypatch.context() as context:
        context.setattr(store.looked_through, "hold", hold)
        with pytest.raises(OSError, match="open files"):
            reader.read(0, len(OLD))
    assert reader.read(0, len(OLD)) == expected


def test_readers_of_many_have_each_segment_open_once(chain: Chain) -> None:
    for number in range(12):
        chain.cut(f"cut{number}")
        chain.write(number * 5, 5, number + 2)
        chain.rig.compactor.drain()
    readers = [chain.rig.new_reader(chain.generation(f"cut{number}")) for number in range(12)]
    for number, reader in enumerate(readers):
        assert reader.read(0, len(OLD)) == chain.expected[f"cut{number}"]
    names = segments_open(chain)
    assert 12 <= len(names) <= len(set(names)) + 1  # and that which is appended to
    readers[3].forget()
    assert len(segments_open(chain)) <= 1


def test_an_unnamed_one_is_replaced_by_the_next(chain: Chain) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.rig.make_cut()
    chain.write(4, 8, 3)
    chain.rig.make_cut()
    chain.write(8, 8, 4)
    chain.check()
    assert chain.merge() == 1
    chain.check()
    assert chain.rig.store is not None
    assert [one.name for one in chain.rig.store.header.cuts] == ["a", ""]


def test_all_of_them_are_carried_on(chain: Chain) -> None:
    for number, name in enumerate("abc"):
        chain.cut(name)
        chain.write(number * 7, 20, number + 2)
    chain.rig.seal()
    chain.rig.open()
    chain.check()
    chain.rig.abandon()
    chain.rig.open()
    chain.check()
    chain.write(40, 10, 9)
    chain.rig.abandon()
    chain.rig.open()
    chain.check()


def test_all_of_them_survive_a_power_loss(make_rig: MakeRig) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=Durability.POWER, staging_slots=32)
    rig.open()
    chain = Chain(rig)
    for number, name in enumerate("abcd"):
        chain.cut(name)
        chain.write(number * 7, 20, number + 2)
    chain.delete("b")
    rig.abandon()
    rig.open(NEXT_BOOT)
    chain.check()
    chain.merge()
    chain.check()
    rig.abandon()
    rig.open()
    chain.check()


def test_one_whose_end_the_disk_could_not_be_told_does_not_come_back(chain: Chain) -> None:
    chain.cut("a")
    chain.write(0, 8, 2)
    chain.cut("b")
    assert chain.rig.store is not None
    lost = [one.snapshot_id for one in chain.rig.store.header.cuts if one.name == "a"]
    chain.rig.abandon()
    request = replace(chain.rig.request(), is_lost=lost.__contains__)
    chain.rig.request = lambda boot_id=BOOT: request  # type: ignore[method-assign]
    assert chain.rig.open().notes == ["the store's disk failed in use, and the snapshot a was lost"]
    with pytest.raises(SnapshotLost):
        chain.read("a")
    assert chain.read("b") == chain.expected["b"]
