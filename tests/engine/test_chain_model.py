"""A chain of snapshots against a list of byte arrays, whatever is done to it in whatever order."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from engine_rig import NEXT_BOOT, Rig, pattern

from cow.disk.layout import Durability
from cow.errors import BlockReleased
from cow.live import reverting
from cow.live.reverting import Revert
from cow.snapshot import SnapshotReader

BLOCK_BYTES = 512
BLOCKS = 48
OLD = pattern(BLOCKS * BLOCK_BYTES - 50)
STEPS = 60
MAX_SNAPSHOTS = 6
MakeRig = Callable[..., Rig]


@dataclass
class Snapshot:
    """What is right: the bytes, but for blocks that read as zeros, and blocks that are released."""

    content: bytes
    free: set[int] = field(default_factory=set)
    released: set[int] = field(default_factory=set)


class Stopped(Exception):
    """A revert is not wanted any more."""


class Model:
    """A rig, its snapshots by generation, oldest first, and one step after the other by the dice."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self._rig, self._dice, self._seed = rig, random.Random(seed), seed
        self._image, self._boot = bytearray(OLD), 0
        rig.open(self._boot_id)
        self._snapshots = {rig.cut.generation: Snapshot(OLD)}
        self._named: set[int] = set()
        self._readers: dict[int, SnapshotReader] = {}

    def run(self) -> None:
        steps = [
            *[self._write] * 6,
            *[self._cut] * 3,
            *[self._delete] * 2,
            *[self._merge] * 2,
            *[self._compact] * 2,
            self._free,
            self._release,
            self._revert,
            self._stop,
        ]
        for number in range(STEPS):
            step = self._dice.choice(steps)
            step()
            self._check(f"seed {self._seed}, step {number}: {step.__name__}")

    # --- steps -----------------------------------------------------------------------------------------------

    def _write(self) -> None:
        first = self._dice.randrange(BLOCKS)
        offset = first * BLOCK_BYTES + self._dice.randrange(40)
        data = pattern(self._dice.randint(1, 6 * BLOCK_BYTES), self._dice.randrange(1 << 20))
        data = data[: len(OLD) - offset]
        if data:
            self._rig.write(offset, data)
            self._image[offset : offset + len(data)] = data

    def _cut(self) -> None:
        is_named = self._dice.random() < 0.7 and len(self._snapshots) < MAX_SNAPSHOTS
        newest = max(self._snapshots)
        if newest not in self._named:
            self._forget(newest)
        self._rig.make_cut(f"n{self._dice.getrandbits(64)}" if is_named else "")
        generation = self._rig.cut.generation
        self._snapshots[generation] = Snapshot(bytes(self._image))
        if is_named:
            self._named.add(generation)

    def _delete(self) -> None:
        older = sorted(self._snapshots)[:-1]
        if older:
            generation = self._dice.choice(older)
            for gone in self._rig.engine.forget_cut(generation):
                gone.let_go()
            self._forget(generation)

    def _forget(self, generation: int) -> None:
        del self._snapshots[generation]
        self._named.discard(generation)
        self._readers.pop(generation, None)

    def _merge(self) -> None:
        if self._dice.random() < 0.7:
            self._rig.compactor.drain()
        gone = self._rig.engine.merge_cut()
        if gone is not None:
            gone.let_go()

    def _compact(self) -> None:
        self._rig.compactor.step()
        self._rig.compactor.squeeze()
        self._rig.compactor.give_back()

    def _free(self) -> None:
        """The map of the newest is known; once for each."""
        newest = self._snapshots[max(self._snapshots)]
        if newest.free:
            return
        first = self._dice.randrange(BLOCKS - 4)
        end = min(BLOCKS, first + self._dice.randint(1, 16))
        self._rig.settle_free([(first, end)])
        newest.free = set(range(first, end))

    def _release(self) -> None:
        first = self._dice.randrange(BLOCKS)
        end = min(BLOCKS, first + self._dice.randint(1, 12))
        self._rig.engine.release(first, end)
        self._snapshots[max(self._snapshots)].released |= set(range(first, end))

    def _revert(self) -> None:
        """To any; or it is stopped on the way, perhaps with all processes or the power, and another one ends it."""
        if self._dice.random() < 0.5 and self._revert_to(self._dice.choice(sorted(self._snapshots)), stops=True):
            if self._dice.random() < 0.7:
                self._stop()
            # What the image holds now is nobody's to know, so it does not count where the next one leaves it.
            self._image = bytearray(self._rig.live())
        self._revert_to(self._dice.choice(sorted(self._snapshots)))

    def _revert_to(self, generation: int, *, stops: bool = False) -> bool:
        """Whether it was stopped."""
        rig, snapshot = self._rig, self._snapshots[generation]
        assert rig.store is not None
        work = Revert(rig.store, rig.engine, generation, rig.new_reader(generation).read_into)
        pieces = self._dice.randrange(8) if stops else BLOCKS

        def check_wanted() -> None:
            nonlocal pieces
            rig.compactor.drain()
            pieces -= 1
            if pieces < 0:
                raise Stopped

        try:
            work.run(check_wanted)
        except BlockReleased:
            assert snapshot.released
        except Stopped:
            return True
        else:
            self._know_reverted(snapshot)
        return False

    def _know_reverted(self, snapshot: Snapshot) -> None:
        assert not snapshot.released
        for block_no in set(range(BLOCKS)) - snapshot.free:
            offset, length = self._rig.geometry.extent(block_no, block_no + 1)
            self._image[offset : offset + length] = snapshot.content[offset : offset + length]

    def _stop(self) -> None:
        """A clean end, a kill, or with durability `power` the loss of it."""
        rig = self._rig
        self._readers.clear()
        kind = self._dice.choice(["clean", "kill", "power"])
        if kind == "clean":
            rig.seal()
        else:
            rig.abandon()
        if kind == "power" and rig.durability is Durability.POWER:
            self._boot += 1
        assert rig.open(self._boot_id).notes == []

    @property
    def _boot_id(self) -> bytes:
        return NEXT_BOOT[:-1] + bytes([self._boot])

    # --- what is right ---------------------------------------------------------------------------------------

    def _check(self, when: str) -> None:
        rig = self._rig
        assert rig.store is not None
        rig.rules.look()
        assert rig.live() == bytes(self._image), when
        shown = [one.generation for one in rig.store.header.cuts if not one.is_hidden]
        assert shown == sorted(self._snapshots), when
        for generation, snapshot in self._snapshots.items():
            self._check_snapshot(generation, snapshot, f"{when}: cut {generation}")

    def _check_snapshot(self, generation: int, snapshot: Snapshot, when: str) -> None:
        reader = self._reader(generation)
        for block_no in range(BLOCKS):
            offset, length = self._rig.geometry.extent(block_no, block_no + 1)
            try:
                found = reader.read(offset, length)
            except BlockReleased:
                assert block_no in snapshot.released, f"{when}, block {block_no}"
                continue
            assert block_no not in snapshot.released, f"{when}, block {block_no}"
            expected = bytes(length) if block_no in snapshot.free else snapshot.content[offset : offset + length]
            assert found == expected, f"{when}, block {block_no}"

    def _reader(self, generation: int) -> SnapshotReader:
        """One that lives on through what comes, or, as the dice have it, a new one."""
        if generation not in self._readers or self._dice.random() < 0.1:
            self._readers[generation] = self._rig.new_reader(generation)
        return self._readers[generation]


@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize("seed", range(12))
def test_every_snapshot_is_right_whatever_is_done(
    make_rig: MakeRig, durability: Durability, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The compactor runs between two pieces only.
    monkeypatch.setattr(reverting, "_PIECE_BYTES", 3 * BLOCK_BYTES)
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=durability, staging_slots=32)
    Model(rig, seed).run()
