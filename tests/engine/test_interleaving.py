"""Reads between any two changes of the writer, and writes between any two steps of a reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from engine_rig import QuickFiles, Rig, pattern
from stops import watching
from test_crash_cut import BLOCK_BYTES, OLD, STEPS, Cut, check_snapshot, models

from cow.errors import BlockReleased, SnapshotEnded
from cow.image import Image
from cow.layout import Durability
from cow.snapshot import SnapshotReader
from cow.store import open_reader

MakeRig = Callable[..., Rig]


@pytest.mark.parametrize("durability", list(Durability))
def test_the_snapshot_is_right_at_every_change(make_rig: MakeRig, durability: Durability) -> None:
    rig = make_rig(OLD, durability=durability, staging_slots=16)
    rig.open()
    states, looks = models(), 0
    for number, step in enumerate(STEPS):

        def look(number: int = number) -> None:
            nonlocal looks
            looks += 1
            near = [state for state in states[number : number + 2] if state.generation == rig.cut.generation]
            try:
                check_snapshot(rig, near, f"in step {number}")
            except SnapshotEnded:
                assert isinstance(STEPS[number], Cut)

        with watching(look):
            step.run(rig)
    assert looks > 100


class InterruptedFiles(QuickFiles):
    """Before and after each read, number ``at`` of them counted from 1 is when ``action`` happens."""

    def __init__(self) -> None:
        self.calls, self.at = 0, 0
        self.action: Callable[[], None] = lambda: None

    def _step(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            self.action()

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self._step()
        data = super().pread(fd, length, offset)
        self._step()
        return data

    def read_into(self, fd: int, views: Sequence[memoryview], offset: int) -> None:
        self._step()
        super().read_into(fd, views, offset)
        self._step()


def overwrite(rig: Rig) -> None:
    rig.write(0, pattern(8 * BLOCK_BYTES, 9))


def overwrite_and_compact(rig: Rig) -> None:
    overwrite(rig)
    rig.compactor.drain()


def use_every_slot_again(rig: Rig) -> None:
    overwrite_and_compact(rig)
    rig.write(8 * BLOCK_BYTES, pattern(len(OLD) - 8 * BLOCK_BYTES, 10))


def squeeze(rig: Rig) -> None:
    use_every_slot_again(rig)
    rig.compactor.drain()
    while rig.compactor.squeeze():
        pass


def release_and_overwrite(rig: Rig) -> None:
    rig.engine.release(0, 8)
    use_every_slot_again(rig)


ACTIONS = [overwrite, overwrite_and_compact, use_every_slot_again, squeeze, release_and_overwrite]


def untouched(rig: Rig) -> None:
    pass


def staged(rig: Rig) -> None:
    rig.write(BLOCK_BYTES, pattern(3 * BLOCK_BYTES, 5))


def stored(rig: Rig) -> None:
    staged(rig)
    rig.compactor.drain()


def stored_in_haste(rig: Rig) -> None:
    rig.write(0, pattern(10 * BLOCK_BYTES, 5))
    rig.compactor.step()


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("before", [untouched, staged, stored, stored_in_haste])
def test_a_read_interrupted_anywhere_is_right(
    make_rig: MakeRig, before: Callable[[Rig], None], action: Callable[[Rig], None]
) -> None:
    at, was_interrupted = 0, True
    while was_interrupted:
        at += 1
        rig = make_rig(OLD, staging_slots=16)
        rig.open()
        before(rig)
        files = InterruptedFiles()
        files.at, files.action = at, lambda rig=rig: action(rig)  # type: ignore[misc]
        was_interrupted = read_interrupted(rig, files, may_be_released=action is release_and_overwrite)
        rig.remove()
    assert at > 1


def read_interrupted(rig: Rig, files: InterruptedFiles, *, may_be_released: bool) -> bool:
    store = open_reader(rig.store_path, files)
    reader = SnapshotReader(store, Image(rig.image_fd, len(OLD), files))
    files.calls = 0
    try:
        assert reader.read(0, 6 * BLOCK_BYTES) == OLD[: 6 * BLOCK_BYTES]
    except BlockReleased:
        assert may_be_released
    finally:
        reader.close()
        store.close()
    return files.calls >= files.at


def test_a_reader_of_the_cut_before_is_told_that_it_ended(make_rig: MakeRig, tmp_path: Path) -> None:
    rig = make_rig(OLD)
    rig.open()
    before = rig.reader
    rig.make_cut()
    with pytest.raises(SnapshotEnded):
        before.read(0, 1)
    assert rig.snapshot() == OLD
