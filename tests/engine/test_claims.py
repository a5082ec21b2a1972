"""Claims on blocks, and the writes, limits, reliefs and cuts that come between any two steps of whoever holds one."""

from __future__ import annotations

import errno
import os

import pytest
from claims_rig import (
    COUNT,
    FAR_LIMIT,
    NEW,
    OLD,
    Beside,
    MakeRig,
    RefusingFiles,
    be_quick,
    holds_new,
    interrupt,
    kinds,
    opened,
    see_who_waits,
    store_without_mappings,
    write,
)
from engine_rig import Rig

import cow.live.relief
import cow.live.traffic
from cow.disk.layout import Counter, CutCounter, Durability, State
from cow.errors import SnapshotEnded
from cow.live.overflow import Event, EventKind, OverflowPolicy
from cow.live.traffic import Gate


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    be_quick(monkeypatch)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is stored through mappings."""
    store_without_mappings(monkeypatch)


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Beside:
    """For rigs that are opened later."""
    return see_who_waits(monkeypatch)


# --- waiting for room ----------------------------------------------------------------------------------------------


def refused_writes(rig: Rig, files: RefusingFiles, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the disk refuses a write that waits for room, until there is some. Others claim blocks meanwhile."""
    write(rig, COUNT - 1)
    monkeypatch.setattr(cow.live.traffic, "_LOOK_AGAIN_S", 60)
    waits = 0

    def wait(gate: Gate, timeout_s: float | None = None) -> None:
        nonlocal waits
        waits += 1
        if waits < 5:
            # As the end of another's claim does.
            gate.tell()
            return
        files.left = 0
        gate._changed.release()
        rig.engine.room.look_again()
        gate._changed.acquire()

    monkeypatch.setattr(Gate, "wait", wait)
    files.left = 5
    write(rig, 0)
    assert holds_new(rig, 0)
    assert rig.snapshot() == OLD
    return files.refused


def test_the_end_of_a_refused_claim_wakes_no_write_that_waits_for_room(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RefusingFiles("/segments/")
    rig = opened(make_rig, policy=OverflowPolicy.WAIT, durability=Durability.POWER, files=files)
    assert refused_writes(rig, files, monkeypatch) == 1


@pytest.mark.usefixtures("written")
def test_nor_does_it_where_the_ring_is_written(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    files = RefusingFiles("/staging")
    rig = opened(make_rig, policy=OverflowPolicy.WAIT, files=files)
    assert refused_writes(rig, files, monkeypatch) == 1


@pytest.mark.parametrize("policy", list(OverflowPolicy))
def test_a_write_that_preserves_nothing_takes_no_ring(make_rig: MakeRig, policy: OverflowPolicy) -> None:
    files = RefusingFiles("/staging")
    rig = opened(make_rig, policy=policy, files=files)
    rig.settle_free([(0, COUNT)])
    files.left = 5
    write(rig, 0)
    assert files.refused == 0
    assert holds_new(rig, 0)
    assert rig.numbers.state is State.ACTIVE
    assert rig.store is not None
    assert not rig.store.staging.takes_space


def test_a_write_that_is_told_to_wait_gets_out_before_the_end(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = opened(make_rig, policy=OverflowPolicy.WAIT)

    def told(event: Event) -> None:
        rig.events.append(event)
        rig.engine.room.stop_waiting(compactor_is_gone=True)

    monkeypatch.setattr(rig.engine.room, "_on_event", told)
    rig.engine.room.set_limit(1)
    write(rig, 0)
    assert holds_new(rig, 0)
    assert kinds(rig) == [EventKind.WAITING, EventKind.OVERFLOW]


# --- limits --------------------------------------------------------------------------------------------------------


def test_a_limit_may_go_while_a_write_looks_at_it(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = opened(make_rig)
    write(rig, 1)
    rig.engine.room.set_limit(FAR_LIMIT)
    real = rig.engine.room._look_at_limit

    def look(limit_bytes: int) -> None:
        rig.engine.room.set_limit(0)
        real(limit_bytes)

    monkeypatch.setattr(rig.engine.room, "_look_at_limit", look)
    rig.write(0, NEW)
    assert rig.control[Counter.LIMIT_BYTES] == 0
    assert holds_new(rig, 0)


@pytest.mark.parametrize(
    ("policy", "owner", "step"),
    [
        (OverflowPolicy.BREAK_WRITE, "room", "give_way"),
        (OverflowPolicy.BREAK_SNAPSHOT, "room", "give_way"),
        (OverflowPolicy.BREAK_SNAPSHOT, "ending", "_begin_end"),
    ],
)
def test_nobody_gives_way_to_a_limit_that_was_raised(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, policy: OverflowPolicy, owner: str, step: str
) -> None:
    rig = opened(make_rig, policy=policy)
    rig.engine.room.set_limit(1)
    interrupt(monkeypatch, getattr(rig.engine, owner), step, lambda: rig.engine.room.set_limit(0))
    write(rig, 0)
    assert rig.control[Counter.LIMIT_BYTES] == 0
    assert holds_new(rig, 0)
    assert rig.events == []
    assert rig.snapshot() == OLD


# --- reliefs -------------------------------------------------------------------------------------------------------


def test_no_claim_is_left_by_a_relief_that_fails(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = opened(make_rig, 1)
    write(rig, 1)

    def fail(*arguments: object, **more: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(cow.live.relief, "count_lost", fail)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            rig.settle_free([(0, 10)])
    assert not rig.engine._claiming.claims
    write(rig, 5)
    assert rig.settle_free([]) == 8


def test_a_release_leaves_out_nothing_that_is_just_found_to_be_free(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, beside: Beside
) -> None:
    rig = opened(make_rig)
    interrupt(
        monkeypatch, rig.cut.settled, "set_range", lambda: beside.run(lambda: rig.engine.cuts.release(0, COUNT))
    )
    rig.settle_free([(0, 10)])
    beside.join()
    assert rig.numbers[CutCounter.RELEASED_BLOCKS] == rig.cut.released.count() == COUNT


@pytest.mark.parametrize("work", ["settle_free", "release"])
def test_what_claims_blocks_of_the_cut_before_claims_none_of_the_next(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    rig = opened(make_rig)
    counts: list[int] = []

    def relieve_the_next() -> None:
        rig.make_cut()
        counts.append(rig.settle_free([(0, 10)]) if work == "settle_free" else rig.engine.cuts.release(0, 10))

    interrupt(monkeypatch, rig.cut.released, "set_range", relieve_the_next)
    with pytest.raises(SnapshotEnded):
        rig.engine.cuts.release(0, COUNT)
    assert counts == [10]
    assert rig.numbers[CutCounter.SETTLED_BLOCKS] == 10
    write(rig, 20)
    assert rig.numbers[CutCounter.PRESERVED_BLOCKS] == 1
