"""Policy `break-oldest`: a full side buffer costs the oldest snapshot, then the next."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest
from engine_rig import Rig, pattern, wait_until

from cow.disk.layout import Counter, Durability, State
from cow.errors import SnapshotLost
from cow.live import ending
from cow.live.overflow import EventKind, OverflowPolicy
from cow.snapshot import SnapshotReader

BLOCK_BYTES = 4096
BLOCKS = 64
OLD = pattern(BLOCKS * BLOCK_BYTES)
LIMIT_BYTES = 40 * BLOCK_BYTES
MakeRig = Callable[..., Rig]


@pytest.fixture(params=list(Durability))
def rig(make_rig: MakeRig, request: pytest.FixtureRequest) -> Rig:
    rig = make_rig(OLD, policy=OverflowPolicy.BREAK_OLDEST, durability=request.param)
    rig.open()
    # There is no view that would have to let go of anything.
    rig.control[Counter.SHOWN_HEADERS] = 1 << 60
    return rig


def random_bytes(count: int, seed: int) -> bytes:
    """Nothing that compresses."""
    return random.Random(seed).randbytes(count * BLOCK_BYTES)


def kept(rig: Rig, name: str, seed: int) -> tuple[SnapshotReader, bytes]:
    """A snapshot of that name, after which 24 blocks are written that do not compress."""
    rig.make_cut(name)
    content = rig.live()
    rig.write(0, random_bytes(24, seed))
    return rig.reader, content


def states(rig: Rig) -> list[State]:
    assert rig.store is not None
    return [cut.numbers.state for cut in rig.store.cuts]


def test_the_oldest_gives_way_and_the_others_stay_right(rig: Rig) -> None:
    rig.write(0, random_bytes(BLOCKS, 1))
    first, _ = kept(rig, "a", 2)
    rig.compactor.drain()
    rig.engine.room.set_limit(LIMIT_BYTES)
    second, content = kept(rig, "b", 3)
    assert states(rig) == [State.OVERFLOWED, State.ACTIVE]
    assert second.read(0, len(OLD)) == content
    with pytest.raises(SnapshotLost):
        first.read(0, 1)
    assert [event.kind for event in rig.events if event.kind is not EventKind.BUFFER_FILLING] == [EventKind.GAVE_WAY]


def test_the_room_of_the_oldest_is_given_back(rig: Rig) -> None:
    rig.write(0, random_bytes(BLOCKS, 1))
    kept(rig, "a", 2)
    rig.compactor.drain()
    rig.engine.room.set_limit(LIMIT_BYTES)
    _, content = kept(rig, "b", 3)
    rig.compactor.drain()
    assert rig.store is not None
    of_oldest = f"-{rig.store.older[0].generation:08d}"
    assert not [path for path in (rig.store_path / "segments").iterdir() if path.name.endswith(of_oldest)]
    assert rig.snapshot() == content


def test_the_newest_gives_way_when_there_is_no_other(rig: Rig) -> None:
    rig.write(0, random_bytes(BLOCKS, 1))
    kept(rig, "a", 2)
    rig.engine.room.set_limit(LIMIT_BYTES)
    rig.write(24 * BLOCK_BYTES, random_bytes(24, 3))
    assert states(rig) == [State.OVERFLOWED]


def test_one_after_the_other_gives_way(rig: Rig) -> None:
    rig.write(0, random_bytes(BLOCKS, 1))
    for number, name in enumerate("abcd"):
        reader, content = kept(rig, name, number + 2)
        rig.compactor.drain()
        rig.engine.room.set_limit(LIMIT_BYTES)
    assert states(rig) == [State.OVERFLOWED] * 3 + [State.ACTIVE]
    assert reader.read(0, len(OLD)) == content


def test_what_gave_way_stays_lost_when_the_store_is_carried_on(rig: Rig) -> None:
    rig.write(0, random_bytes(BLOCKS, 1))
    kept(rig, "a", 2)
    rig.compactor.drain()
    rig.engine.room.set_limit(LIMIT_BYTES)
    _, content = kept(rig, "b", 3)
    rig.seal()
    rig.open()
    assert states(rig) == [State.OVERFLOWED, State.ACTIVE]
    assert rig.snapshot() == content


def test_what_is_in_the_ring_survives_a_kill_behind_one_that_gave_way(rig: Rig) -> None:
    rig.write(0, random_bytes(BLOCKS, 1))
    kept(rig, "a", 2)
    rig.compactor.drain()
    rig.engine.room.set_limit(LIMIT_BYTES)
    _, content = kept(rig, "b", 3)
    rig.engine.room.set_limit(0)
    rig.write(30 * BLOCK_BYTES, random_bytes(4, 4))
    rig.abandon()
    assert rig.open().notes == []
    assert states(rig) == [State.OVERFLOWED, State.ACTIVE]
    assert rig.snapshot() == content


def test_what_the_oldest_alone_needed_is_owed_no_more(rig: Rig) -> None:
    rig.write(0, random_bytes(BLOCKS, 1))
    rig.make_cut("a")
    rig.write(40 * BLOCK_BYTES, random_bytes(24, 2))
    rig.compactor.drain()
    rig.make_cut("b")
    rig.settle_free([(0, 32)])
    assert not rig.cut.settled.any_set(0, 32)
    rig.engine.room.set_limit(30 * BLOCK_BYTES)
    rig.write(40 * BLOCK_BYTES, random_bytes(16, 3))
    assert states(rig) == [State.OVERFLOWED, State.ACTIVE]
    rig.engine.cuts.settle_again()
    assert rig.cut.settled.all_set(0, 32)


def test_until_the_room_has_come_back_the_next_does_not_give_way(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "_GIVE_BACK_S", 1000.0)
    rig.control[Counter.SHOWN_HEADERS] = 0
    rig.write(0, random_bytes(BLOCKS, 1))
    kept(rig, "a", 2)
    rig.compactor.drain()
    rig.make_cut("b")
    rig.engine.room.set_limit(8 * BLOCK_BYTES)
    writer = threading.Thread(target=rig.engine.write, args=(0, random_bytes(16, 3)))
    writer.start()
    wait_until(lambda: State.OVERFLOWED in states(rig) and bool(rig.engine.pressing.threads))
    assert states(rig) == [State.OVERFLOWED, State.ACTIVE]
    rig.compactor.step()
    rig.control[Counter.SHOWN_HEADERS] = 1 << 60
    writer.join()
    assert states(rig) == [State.OVERFLOWED, State.OVERFLOWED]


def test_what_only_a_lost_one_needed_goes_with_its_deletion(rig: Rig) -> None:
    rig.write(0, random_bytes(BLOCKS, 1))
    kept(rig, "a", 2)
    rig.compactor.drain()
    rig.engine.room.set_limit(LIMIT_BYTES)
    kept(rig, "b", 3)
    between = rig.cut.generation
    rig.make_cut("c")
    for gone in rig.engine.cuts.forget(between):
        gone.let_go()
    assert rig.store is not None
    assert [one.name for one in rig.store.header.cuts] == ["a", "c"]


def test_one_that_is_over_ends_with_the_only_one_that_needed_it(rig: Rig) -> None:
    rig.write(0, random_bytes(BLOCKS, 1))
    kept(rig, "a", 2)
    kept(rig, "b", 3)
    between = rig.cut.generation
    rig.make_cut("c")
    content = rig.live()
    rig.compactor.drain()
    for gone in rig.engine.cuts.forget(between):
        gone.let_go()
    rig.engine.room.set_limit(LIMIT_BYTES)
    rig.write(30 * BLOCK_BYTES, random_bytes(4, 5))
    assert states(rig) == [State.OVERFLOWED, State.OVERFLOWED, State.ACTIVE]
    rig.compactor.drain()
    rig.abandon()
    assert rig.open().notes == []
    assert rig.snapshot() == content


def test_nothing_is_owed_when_all_that_are_shown_are_lost(rig: Rig) -> None:
    rig.write(0, random_bytes(BLOCKS, 1))
    kept(rig, "a", 2)
    rig.compactor.drain()
    rig.engine.room.set_limit(LIMIT_BYTES)
    kept(rig, "b", 3)
    for gone in rig.engine.cuts.forget(rig.cut.generation):
        gone.let_go()
    assert states(rig) == [State.OVERFLOWED, State.NONE]
