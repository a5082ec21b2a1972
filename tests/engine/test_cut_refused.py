"""A cut that nobody wants any more when its moment has come: all is as if it had never been asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from engine_rig import Rig, pattern

from cow.disk.header import cut_header
from cow.live.cutting import discard_cut, prepare_cut

BLOCK_BYTES = 4096
OLD = pattern(16 * BLOCK_BYTES)
NEW = pattern(BLOCK_BYTES, seed=2)


class TooLate(Exception):
    pass


def refuse() -> None:
    raise TooLate


def test_a_cut_that_is_refused_leaves_the_snapshot_before(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig(OLD)
    store = rig.open().store
    rig.write(0, NEW)
    cut, generation = prepare_cut(store), store.cut.generation
    with pytest.raises(TooLate):
        rig.engine.begin_cut(cut, cut_header(rig.image, cut.generation), refuse)
    discard_cut(cut)
    rig.write(BLOCK_BYTES, NEW)
    assert store.cut.generation == generation
    assert rig.snapshot() == OLD
    rig.make_cut()
    assert rig.snapshot() == rig.live() == NEW + NEW + OLD[2 * BLOCK_BYTES :]
