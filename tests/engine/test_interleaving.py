"""Reads between any two changes of the writer, writes between any two steps of a reader, and all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from changes import watching
from engine_rig import QuickFiles, Rig, pattern
from test_crash_cut import BLOCK_BYTES, OLD, STEPS, Cut, check_snapshot, models
from turns import Turns, waiting

import cow.compact.compactor
import cow.live.pace
from cow.disk.image import Image
from cow.disk.layout import Durability
from cow.disk.rules import check_store
from cow.disk.store import open_reader
from cow.errors import BlockReleased, SnapshotEnded
from cow.snapshot import SnapshotReader

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
            assert rig.store is not None
            assert list(check_store(rig.store, at_rest=False)) == []

        with watching(look):
            step.run(rig)
    assert looks > 100


class InterruptedFiles(QuickFiles):
    """Before and after each read, number `at` of them counted from 1 is when `action` happens."""

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
    rig.engine.cuts.release(0, 8)
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


# So many blocks that every slot of the ring is used again and again.
MANY = 72
MUCH = pattern(MANY * BLOCK_BYTES - 50)


class Everybody:
    """A writer, a compactor, a reader and one who releases, for `Turns`; and what is right at each moment."""

    def __init__(self, rig: Rig, turns: Turns) -> None:
        self._rig, self._turns = rig, turns
        self._live = bytearray(MUCH)
        self._begun: set[int] = set()
        self._released: set[int] = set()
        self.reads = self.refusals = self.squeezes = 0
        for work in (self._write, self._release, self._compact, self._read):
            turns.add(work)

    def _write(self) -> None:
        dice = self._turns.dice
        for number in range(40):
            first = dice.randrange(MANY - 3)
            data = pattern(dice.randint(1, 3 * BLOCK_BYTES), number + 2)
            offset = first * BLOCK_BYTES + dice.randrange(50)
            data = data[: len(MUCH) - offset]
            if not self._rig.engine.try_write(offset, data):
                self._rig.engine.write(offset, data)
            self._live[offset : offset + len(data)] = data

    def _release(self) -> None:
        dice, bitmap = self._turns.dice, self._rig.cut.released
        for _ in range(8):
            for _ in range(dice.randrange(150)):
                self._turns.step()
            first = dice.randrange(MANY)
            end = min(MANY, first + dice.randint(1, 5))
            self._begun.update(range(first, end))
            self._rig.engine.cuts.release(first, end)
            # What a write had claimed at that moment is not released.
            self._released |= {block_no for block_no in range(first, end) if bitmap.get(block_no)}

    def _compact(self) -> None:
        while self._turns.count > 2:
            self._rig.compactor.step()
            self.squeezes += self._rig.compactor.squeeze()
            self._turns.step()
        self._rig.compactor.drain()

    def _read(self) -> None:
        store = open_reader(self._rig.store_path, self._rig.files)
        reader = SnapshotReader(store, self._rig.image)
        try:
            while self._turns.count > 1:
                first = self._turns.dice.randrange(MANY)
                self._look(reader, first, min(MANY, first + self._turns.dice.randint(1, 4)))
            for block_no in range(MANY):
                self._look(reader, block_no, block_no + 1)
        finally:
            reader.close()
            store.close()
        assert self._rig.live() == self._live

    def _look(self, reader: SnapshotReader, first: int, end: int) -> None:
        blocks = set(range(first, end))
        before = blocks & self._released
        offset, length = self._rig.geometry.extent(first, end)
        view = memoryview(bytearray(length))
        try:
            if not reader.try_read(view, offset):
                reader.read_into(view, offset)
        except BlockReleased:
            assert blocks & self._begun
            self.refusals += 1
            return
        assert not before, "what was released is never read again"
        assert view == MUCH[offset : offset + length]
        self.reads += 1


@pytest.mark.parametrize("durability", list(Durability))
def test_no_interleaving_of_all_shows_anything_wrong(
    make_rig: MakeRig, durability: Durability, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = refusals = squeezes = 0
    # A slow disk would send every write the long way.
    monkeypatch.setattr(cow.live.pace.Pace, "is_quick", lambda self, now_ns: True)
    real = cow.compact.compactor.acceleration_for
    for seed in range(40):
        # What is stored in haste is squeezed later.
        hasty = seed % 2 == 0
        monkeypatch.setattr(cow.compact.compactor, "acceleration_for", (lambda share: 0) if hasty else real)
        turns, rig = Turns(seed), make_rig(MUCH, durability=durability, staging_slots=16)
        with waiting(turns), watching(turns.step, also_reads=True):
            rig.open()
            everybody = Everybody(rig, turns)
            turns.run()
        reads, refusals = reads + everybody.reads, refusals + everybody.refusals
        squeezes += everybody.squeezes
        rig.remove()
    assert min(reads, refusals) > 100
    assert squeezes or durability is Durability.POWER


@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize("work", ["step", "give_back"])
def test_a_cut_between_any_two_steps_of_the_compactor_loses_nothing(
    make_rig: MakeRig, durability: Durability, work: str
) -> None:
    at = 0
    while cut_in_between(make_rig(OLD, durability=durability, staging_slots=16), work, at):
        at += 1
    assert at > 1


def cut_in_between(rig: Rig, work: str, at: int) -> bool:
    """The next cut and its first writes come before change or look number `at`; False when there were fewer."""
    rig.open()
    stored_in_haste(rig)
    rig.engine.cuts.release(0, 1)
    rig.engine.write(4 * BLOCK_BYTES, bytes(2 * BLOCK_BYTES))
    expected, looks = b"", 0

    def look() -> None:
        nonlocal expected, looks
        if looks == at:
            expected = rig.live()
            rig.make_cut()
            rig.engine.write(0, pattern(6 * BLOCK_BYTES, 9))
        looks += 1

    with rig.rules.changing(), watching(look, also_reads=True):
        getattr(rig.compactor, work)()
    if expected:
        for _ in range(4):
            # Slots that are free are used again.
            rig.write(6 * BLOCK_BYTES, bytes(len(OLD) - 6 * BLOCK_BYTES))
            rig.compactor.drain()
        assert rig.snapshot() == expected, at
    rig.close()
    return bool(expected)
