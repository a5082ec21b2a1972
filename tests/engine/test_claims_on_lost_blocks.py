"""Claims on blocks that the image cannot give: each is counted, told and excused once, whoever comes in between."""

from __future__ import annotations

import threading

import pytest
from claims_rig import (
    COUNT,
    FAR_LIMIT,
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

import cow.disk.files
import cow.live.relief
import cow.live.traffic
from cow.disk.files import Data
from cow.disk.layout import CutCounter, State
from cow.errors import BufferFull
from cow.live.overflow import Event, EventKind, OverflowPolicy
from cow.live.relief import Relief


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


@pytest.mark.usefixtures("written")
def test_a_block_that_is_lost_is_counted_and_told_when_the_disk_refuses_the_rest(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RefusingFiles("/changed")
    rig = opened(make_rig, 1, policy=OverflowPolicy.WAIT, files=files)
    monkeypatch.setattr(cow.live.traffic, "_LOOK_AGAIN_S", 0.001)
    # Allocates the page of their bits, which is refused later.
    write(rig, COUNT - 1)
    files.left = 1
    write(rig, 1)
    assert files.refused == 1
    assert rig.numbers.lost_blocks == 1
    assert rig.numbers.state is State.DAMAGED
    assert kinds(rig) == [EventKind.LOST, EventKind.WAITING]


@pytest.mark.usefixtures("written")
def test_what_is_settled_is_counted_when_the_disk_refuses_the_rest(make_rig: MakeRig) -> None:
    files = RefusingFiles("/changed")
    rig = opened(make_rig, policy=OverflowPolicy.BREAK_WRITE, files=files)
    write(rig, COUNT - 1)
    files.left = 1
    with pytest.raises(BufferFull):
        write(rig, 0)
    assert not holds_new(rig, 0)
    assert rig.numbers[CutCounter.SETTLED_BLOCKS] == rig.cut.settled.count()
    assert rig.numbers[CutCounter.PRESERVED_BLOCKS] == rig.cut.index.count()


def test_the_owner_is_told_of_a_lost_block_before_it_is_written(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, beside: Beside
) -> None:
    rig = opened(make_rig, 1)
    rig.engine.room.set_limit(FAR_LIMIT)
    writer, told_when_written = threading.current_thread(), list[EventKind]()
    real_look, real_write = rig.engine.room._look_at_limit, rig.image.write
    is_written = threading.Event()

    def look(limit_bytes: int) -> None:
        if threading.current_thread() is writer:
            beside.run(lambda: write(rig, 9))
        real_look(limit_bytes)

    def told(event: Event) -> None:
        if threading.current_thread() is not writer:
            # This owner takes his time.
            with beside.waiting():
                is_written.wait(10)
        rig.events.append(event)

    def write_image(data: Data, offset: int) -> None:
        if threading.current_thread() is writer:
            told_when_written.extend(kinds(rig))
            is_written.set()
        real_write(data, offset)

    monkeypatch.setattr(rig.engine.room, "_look_at_limit", look)
    monkeypatch.setattr(rig.engine.room, "_on_event", told)
    monkeypatch.setattr(rig.image, "write", write_image)
    write(rig, 1)
    beside.join()
    assert told_when_written == [EventKind.LOST]
    assert holds_new(rig, 9)


def test_a_lost_block_is_excused_once(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, beside: Beside) -> None:
    rig = opened(make_rig, 1, 9)
    write(rig, 1)
    real = Relief._count_lost

    def count_lost(relief: Relief, first: int, end: int, **more: bool) -> int:
        if first == 3:
            monkeypatch.setattr(Relief, "_count_lost", real)
            # It is free, which nobody knows yet.
            beside.run(lambda: rig.engine.cuts.release(1, 2))
        return real(relief, first, end, **more)

    monkeypatch.setattr(Relief, "_count_lost", count_lost)
    rig.settle_free([(1, 2), (3, 4)])
    beside.join()
    assert rig.cut.released.get(1)
    assert rig.numbers[CutCounter.EXCUSED_BLOCKS] == 1
    write(rig, 9)
    assert rig.numbers.lost_blocks == 1


def test_a_free_block_that_is_just_being_lost_is_not_missed(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = opened(make_rig, 5)
    assert rig.numbers.state is State.ACTIVE
    # It is settled by then, and counted later.
    interrupt(monkeypatch, rig.cut.changed, "count_set", lambda: rig.settle_free([(0, 10)]))
    write(rig, 5)
    assert rig.numbers[CutCounter.FREE_BLOCKS] == 10
    assert rig.numbers.lost_blocks == 0
    assert rig.numbers.state is State.ACTIVE
