"""A cut by its steps, so that they can fail, and others come in between."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from engine_rig import Rig, pattern

import cow.disk.mapped_file
from cow.disk.cut import Cut
from cow.disk.filesystems import Storing
from cow.disk.header import cut_header
from cow.live.cutting import prepare_cut

BLOCK_BYTES = 4096
OLD = pattern(256 * BLOCK_BYTES)
NEW = pattern(64 * BLOCK_BYTES, 2)
MakeRig = Callable[..., Rig]


def new_cut(rig: Rig) -> Cut:
    """The next cut, taken; whoever works on the one before goes on. The one before, to be let go."""
    assert rig.store is not None
    cut = prepare_cut(rig.store)
    (before,) = rig.engine.begin_cut(cut, cut_header(rig.image, cut.generation))
    rig.cut, rig.numbers = cut, cut.numbers
    rig.reader = rig.new_reader()
    return before


def failing(code: int, times: int) -> Callable[..., None]:
    left = [times]

    def fail(*words: object, **more: object) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(code, os.strerror(code))

    return fail


def as_on_btrfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps are stored into by system calls, and numbers are shared in memory."""
    monkeypatch.setattr(cow.disk.mapped_file, "storing_on", lambda fd: Storing.WRITTEN)
