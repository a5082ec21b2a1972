"""Reads of the snapshot that may not wait: nothing is answered that is not in the page cache."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
from engine_rig import QuickFiles, Rig

from cow.snapshot import SnapshotReader

BLOCK_BYTES = 4096
OLD = random.Random(3).randbytes(8 * BLOCK_BYTES)
MakeRig = Callable[..., Rig]


class ColdFiles(QuickFiles):
    """A store of which nothing is cached."""

    def try_read_into(self, fd: int, views: Sequence[memoryview], offset: int) -> bool:
        return False


@pytest.mark.parametrize("is_stored", [False, True])
def test_a_preserved_block_that_is_not_cached(make_rig: MakeRig, is_stored: bool) -> None:
    rig = make_rig(OLD, files=ColdFiles())
    rig.open()
    assert rig.store
    rig.write(0, bytes(BLOCK_BYTES))
    if is_stored:
        rig.compactor.drain()
    reader = SnapshotReader(rig.store, rig.image)
    view = memoryview(bytearray(BLOCK_BYTES))
    assert not reader.try_read(view, 0)
    reader.read_into(view, 0)
    assert view == OLD[:BLOCK_BYTES]
    reader.close()


def test_an_older_snapshot_once_somebody_has_opened_the_later_ones(make_rig: MakeRig) -> None:
    rig = make_rig(OLD)
    rig.open()
    rig.make_cut("old")
    old = rig.cut.generation
    rig.write(0, bytes(3 * BLOCK_BYTES))
    rig.make_cut("new")
    reader, other = rig.new_reader(old), rig.new_reader(old)
    view = memoryview(bytearray(len(OLD)))
    assert not reader.try_read(view, 0)
    other.read_into(view, 0)
    assert reader.try_read(view, 0)
    assert view == OLD
