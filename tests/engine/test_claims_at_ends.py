"""Claims on blocks, and the end of a snapshot that comes between any two steps of whoever holds one."""

from __future__ import annotations

import os
import threading

import pytest
from claims_rig import (
    NEW,
    Beside,
    MakeRig,
    be_quick,
    holds_new,
    interrupt,
    kinds,
    next_cut,
    opened,
    see_who_waits,
    store_without_mappings,
    write,
)
from engine_rig import wait_until

import cow.disk.files
import cow.live.heartbeat
from cow.disk.layout import CutCounter, State
from cow.disk.mapped_file import MappedFile
from cow.disk.numbers import CutNumbers
from cow.live.overflow import Event, EventKind


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


def test_damage_that_is_found_at_the_end_brings_no_snapshot_back(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, beside: Beside
) -> None:
    rig = opened(make_rig)
    writer, real = threading.current_thread(), CutNumbers.state

    def state(numbers: CutNumbers) -> State:
        found: State = real.__get__(numbers)
        if threading.current_thread() is not writer:
            # The writer goes on with the end, to where he has to wait.
            with beside.waiting():
                wait_until(lambda: beside.waits(writer))
        return found

    def told(event: Event) -> None:
        rig.events.append(event)
        beside.run(lambda: rig.engine.ending.note_damage(rig.cut.generation))

    monkeypatch.setattr(CutNumbers, "state", property(state))
    monkeypatch.setattr(rig.engine.ending, "_on_event", told)
    rig.engine.room.set_limit(1)
    write(rig, 0)
    beside.join()
    assert kinds(rig) == [EventKind.OVERFLOW]
    assert rig.numbers[CutCounter.DAMAGED_READS] == 1
    assert rig.numbers.state is State.OVERFLOWED
    assert not rig.numbers.is_kept


def test_a_look_at_the_store_takes_no_whole_cut_for_a_short_one(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = opened(make_rig)
    write(rig, 0)
    before, real = rig.cut, MappedFile.is_whole
    files = [before.settled.file]

    def is_whole(file: MappedFile) -> bool:
        if file in files:
            files.remove(file)
            next_cut(rig)
        found: bool = real.__get__(file)
        return found

    monkeypatch.setattr(MappedFile, "is_whole", property(is_whole))
    rig.engine.ending.look_at_store()
    assert rig.cut is not before
    assert rig.events == []
    assert rig.cut.is_intact
    assert rig.snapshot() == rig.live()


@pytest.mark.usefixtures("written")
def test_damage_may_be_found_while_the_next_cut_is_made(make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = opened(make_rig)
    before = rig.cut
    interrupt(monkeypatch, before.numbers, "keep", lambda: next_cut(rig))
    rig.engine.ending.note_damage(before.generation)
    assert rig.cut is not before
    assert rig.numbers[CutCounter.DAMAGED_READS] == 0
    assert rig.numbers.state is State.ACTIVE


def test_what_a_beat_found_is_not_taken_for_looked_at_before_a_look_is_done(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = opened(make_rig)
    write(rig, 0)
    os.truncate(rig.cut.path / "index", 0)
    rig.engine.ending.glance_at_store()
    real, meanwhile = rig.engine.ending._is_cut_short, list[bool]()

    def look() -> bool:
        meanwhile.append(rig.engine.ending.is_suspect)
        return real()

    monkeypatch.setattr(rig.engine.ending, "_is_cut_short", look)
    rig.engine.ending.look_at_store()
    assert (meanwhile, rig.engine.ending.is_suspect) == ([True], False)


def test_what_a_beat_found_is_not_forgotten_by_a_look_under_way(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = opened(make_rig)
    write(rig, 0)
    # No write from here on has a beat of its own.
    monkeypatch.setattr(cow.live.heartbeat, "_BEAT_NS", 1 << 62)
    real = rig.engine.ending._is_cut_short

    def look_too_early() -> bool:
        is_short = real()
        os.truncate(rig.cut.path / "index", 0)
        rig.engine._beat()
        return is_short

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rig.engine.ending, "_is_cut_short", look_too_early)
        rig.engine.ending.look_at_store()
    assert not rig.engine.try_write(0, NEW)
    write(rig, 0)
    assert kinds(rig) == [EventKind.CUT_SHORT]
    assert holds_new(rig, 0)


def test_a_beat_suspects_nothing_of_a_store_that_is_known_to_be_short(make_rig: MakeRig) -> None:
    rig = opened(make_rig)
    write(rig, 0)
    os.truncate(rig.cut.path / "index", 0)
    rig.engine.ending.look_at_store()
    rig.engine._beat()
    assert rig.engine.try_write(0, NEW)
