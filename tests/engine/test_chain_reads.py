"""Readers of every snapshot of a chain, while cuts, first touches, deletions, merges and compaction go on.

A reader stopped before any of its steps while all of another operation goes by, and an operation stopped before any
of its steps while every snapshot is read: nothing stale, nothing torn.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from changes import watching
from engine_rig import Rig, pattern

from cow.disk.layout import Durability
from cow.errors import SnapshotEnded
from cow.snapshot import SnapshotReader

BLOCK_BYTES = 512
BLOCKS = 12
OLD = pattern(BLOCKS * BLOCK_BYTES - 50)
# Of the steps of a read: with 1 it takes minutes.
EVERY = 4
MakeRig = Callable[..., Rig]


class Chain:
    """A rig with the snapshots a, b and c, of which each has blocks of its own; by name, what each holds, and a
    reader that has read it already."""

    def __init__(self, rig: Rig, *, is_stored: bool) -> None:
        self.rig = rig
        self.expected: dict[str, bytes] = {}
        self.readers: dict[str, SnapshotReader] = {}
        rig.open()
        for number, name in enumerate("abc"):
            self.cut(name)
            self.write(3 * number, 4, number + 2)
            if is_stored:
                rig.compactor.drain()

    def write(self, first: int, count: int, seed: int) -> None:
        offset = first * BLOCK_BYTES
        self.rig.write(offset, pattern(count * BLOCK_BYTES, seed)[: len(OLD) - offset])

    def cut(self, name: str) -> None:
        content = self.rig.live()
        self.rig.make_cut(name)
        self.expected[name], self.readers[name] = content, self.rig.reader

    def generation(self, name: str) -> int:
        assert self.rig.store is not None
        return next(one.generation for one in self.rig.store.header.cuts if one.name == name)

    def delete(self, name: str) -> None:
        for gone in self.rig.engine.cuts.forget(self.generation(name)):
            gone.let_go()
        del self.expected[name]

    def merge(self) -> None:
        self.rig.compactor.drain()
        while (gone := self.rig.engine.cuts.merge()) is not None:
            gone.let_go()

    def reuse_every_slot(self) -> None:
        """What is still staged is moved, and its slots are used again; records that were stored in haste, too."""
        for seed in (90, 91):
            self.rig.compactor.drain()
            self.write(0, BLOCKS, seed)
        self.rig.compactor.drain()
        while self.rig.compactor.squeeze():
            pass


def touch(chain: Chain) -> None:
    chain.write(0, BLOCKS, 9)


def cut_and_touch(chain: Chain) -> None:
    chain.cut("d")
    touch(chain)


def cut_often(chain: Chain) -> None:
    for number, name in enumerate("def"):
        chain.cut(name)
        chain.write(2 * number, 6, 20 + number)
    chain.reuse_every_slot()


def compact(chain: Chain) -> None:
    touch(chain)
    chain.reuse_every_slot()


def delete_oldest(chain: Chain) -> None:
    chain.delete("a")
    touch(chain)
    chain.reuse_every_slot()


def delete_and_merge(chain: Chain) -> None:
    chain.delete("b")
    chain.merge()
    chain.reuse_every_slot()


def delete_newest_and_merge(chain: Chain) -> None:
    chain.delete("c")
    chain.write(0, 8, 9)
    chain.cut("d")
    chain.merge()
    touch(chain)
    chain.reuse_every_slot()


def free_in_the_newest(chain: Chain) -> None:
    chain.cut("d")
    chain.rig.settle_free([(0, BLOCKS)])
    touch(chain)
    chain.reuse_every_slot()
    del chain.expected["d"]


OPERATIONS = [
    touch,
    cut_and_touch,
    cut_often,
    compact,
    delete_oldest,
    delete_and_merge,
    delete_newest_and_merge,
    free_in_the_newest,
]
Operation = Callable[[Chain], None]
BOTH = pytest.mark.parametrize("durability", list(Durability))
ALL = pytest.mark.parametrize("operation", OPERATIONS)


def read(chain: Chain, name: str, content: bytes, reader: SnapshotReader) -> None:
    """It is right, or of one that is over."""
    try:
        found = reader.read(0, len(OLD))
    except SnapshotEnded:
        assert name not in chain.expected
    else:
        assert found == content, name


@ALL
@pytest.mark.parametrize("is_new", [True, False])
def test_a_read_stopped_anywhere_is_right(make_rig: MakeRig, operation: Operation, is_new: bool) -> None:
    for start, name in enumerate("ab"):
        at = start
        while read_stopped(make_rig, operation, Durability.PROCESS, name, at, is_new=is_new):
            at += EVERY
        assert at > 20


def read_stopped(
    make_rig: MakeRig, operation: Operation, durability: Durability, name: str, at: int, *, is_new: bool
) -> bool:
    """The operation goes by before step number `at` of the read; False when there are fewer."""
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=durability, staging_slots=16)
    chain, steps = Chain(rig, is_stored=at % 2 == 0), 0
    content, reader = chain.expected[name], chain.readers[name]
    if is_new:
        reader = rig.new_reader(chain.generation(name))
    else:
        read(chain, name, content, reader)

    def look() -> None:
        nonlocal steps
        if steps == at:
            operation(chain)
        steps += 1

    with watching(look, also_reads=True):
        read(chain, name, content, reader)
    if steps > at:
        # Also what it remembers is right afterwards.
        read(chain, name, content, reader)
    rig.remove()
    return steps > at


@BOTH
@ALL
def test_every_snapshot_is_right_at_every_step_of_an_operation(
    make_rig: MakeRig, operation: Operation, durability: Durability
) -> None:
    rig = make_rig(OLD, block_bytes=BLOCK_BYTES, durability=durability, staging_slots=16)
    chain, looks = Chain(rig, is_stored=durability is Durability.POWER), 0
    before, readers = dict(chain.expected), dict(chain.readers)

    def look() -> None:
        nonlocal looks
        looks += 1
        for name, content in before.items():
            try:
                assert readers[name].read(0, len(OLD)) == content, name
            except SnapshotEnded:
                assert operation in (delete_oldest, delete_and_merge, delete_newest_and_merge)

    with watching(look):
        operation(chain)
    assert looks > 20
    for name, content in chain.expected.items():
        read(chain, name, content, rig.new_reader(chain.generation(name)))
