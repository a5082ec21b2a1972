"""A chain of snapshots over a rig, and what each of them has to hold."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace

from engine_rig import Rig, pattern

from cow.disk.layout import Durability
from cow.errors import Damaged
from cow.snapshot import SnapshotReader

BLOCK_BYTES = 512
BLOCKS = 64
OLD = pattern(BLOCKS * BLOCK_BYTES - 50)
MakeRig = Callable[..., Rig]


class Chain:
    """A rig, and what each of its snapshots held, by name."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.expected: dict[str, bytes] = {}

    def write(self, first: int, count: int, seed: int) -> None:
        offset = first * BLOCK_BYTES
        self.rig.write(offset, pattern(count * BLOCK_BYTES, seed)[: len(OLD) - offset])

    def cut(self, name: str) -> None:
        self.rig.make_cut(name)
        self.expected[name] = self.rig.live()

    def generation(self, name: str) -> int:
        assert self.rig.store is not None
        return next(one.generation for one in self.rig.store.header.cuts if one.name == name)

    def delete(self, name: str) -> None:
        for gone in self.rig.engine.cuts.forget(self.generation(name)):
            gone.let_go()
        del self.expected[name]

    def merge(self) -> int:
        """How many could be merged."""
        self.rig.compactor.drain()
        count = 0
        while (gone := self.rig.engine.cuts.merge()) is not None:
            gone.let_go()
            count += 1
        self.rig.rules.look()
        return count

    def read_at(self, name: str, block_no: int) -> bytes:
        return self.read(name, 1, block_no)

    def read(self, name: str, blocks: int = BLOCKS, first: int = 0) -> bytes:
        store = self.rig.store
        assert store is not None
        cut = store.open_cut(self.generation(name), writable=False)
        reader = SnapshotReader(replace(store, cut=cut), self.rig.image)
        try:
            return reader.read(first * BLOCK_BYTES, blocks * BLOCK_BYTES)
        finally:
            reader.close()
            cut.let_go()

    def check(self) -> None:
        self.rig.rules.look()
        for name, content in self.expected.items():
            assert self.read(name) == content, name


def new_chain(make_rig: MakeRig, durability: Durability) -> Chain:
    """Opened; the first cut has no name."""
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=durability, staging_slots=32)
    rig.open()
    return Chain(rig)


def read_blocks(chain: Chain, name: str) -> dict[int, bytes]:
    """Those that can be read."""
    content = {}
    for block_no in range(BLOCKS):
        with contextlib.suppress(Damaged):
            content[block_no] = chain.read_at(name, block_no)
    return content
