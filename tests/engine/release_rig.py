"""Snapshots of which blocks are released, and what each of them has to hold and does not have any more."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from engine_rig import Rig, pattern

from cow.disk.cut import Cut
from cow.disk.layout import CutCounter, Durability
from cow.errors import BlockReleased
from cow.snapshot import SnapshotReader

BLOCK_BYTES, BLOCKS = 4096, 64
OLD = pattern(BLOCKS * BLOCK_BYTES)
MakeRig = Callable[..., Rig]


class Chain:
    """A rig, and what each of its snapshots held and does not have any more, by name."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.expected: dict[str, bytes] = {}
        self.released: dict[str, set[int]] = {}

    def write(self, first: int, end: int, seed: int) -> None:
        self.rig.write(first * BLOCK_BYTES, pattern((end - first) * BLOCK_BYTES, seed))
        self.rig.compactor.drain()

    def cut(self, name: str) -> None:
        self.rig.make_cut(name)
        self.expected[name], self.released[name] = self.rig.live(), set()

    def of(self, name: str) -> Cut:
        store = self.rig.store
        assert store is not None
        generation = next(one.generation for one in store.header.cuts if one.name == name)
        return next(cut for cut in store.cuts if cut.generation == generation)

    def release(self, name: str, first: int, end: int) -> int:
        count = self.rig.engine.cuts.release(first, end, self.of(name))
        self.released[name] |= set(range(first, end))
        self.rig.give_back()
        return count

    def delete(self, name: str) -> None:
        for gone in self.rig.engine.cuts.forget(self.of(name).generation):
            gone.let_go()
        del self.expected[name]

    def merge(self) -> int:
        """How many are merged at once."""
        count = 0
        while (gone := self.rig.engine.cuts.merge()) is not None:
            gone.let_go()
            count += 1
        self.rig.rules.look()
        return count

    def kept_bytes(self, name: str) -> int:
        numbers = self.of(name).numbers
        return numbers[CutCounter.STORED_BYTES] - numbers[CutCounter.RETURNED_BYTES]

    def check(self) -> None:
        """Each reads as it should, block by block."""
        self.rig.rules.look()
        store = self.rig.store
        assert store is not None
        for name, content in self.expected.items():
            cut = store.open_cut(self.of(name).generation, writable=False)
            reader = SnapshotReader(replace(store, cut=cut), self.rig.image)
            for block_no in range(BLOCKS):
                offset = block_no * BLOCK_BYTES
                if block_no in self.released[name]:
                    with pytest.raises(BlockReleased):
                        reader.read(offset, BLOCK_BYTES)
                else:
                    assert reader.read(offset, BLOCK_BYTES) == content[offset : offset + BLOCK_BYTES], name
            reader.close()
            cut.let_go()


def new_chain(make_rig: MakeRig, durability: Durability) -> Chain:
    """Snapshots a, b and c; each has the blocks that were written behind it: 0 to 31, 16 to 47, 32 to 63."""
    rig = make_rig(OLD, durability=durability, staging_slots=4 * BLOCKS)
    rig.open()
    chain = Chain(rig)
    for number, name in enumerate("abc"):
        chain.cut(name)
        chain.write(16 * number, 16 * number + 32, number + 2)
    return chain
