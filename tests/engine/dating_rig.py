"""A rig whose parts have times, and what these are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_rig import BOOT, Rig, pattern

from cow.disk import times
from cow.disk.layout import Protect
from cow.disk.times import PartTimes
from cow.live import dating
from cow.live.dating import finish_times, follow_times, resume_times
from cow.mount.recovery import Request

BLOCK = 512
PART = 4 * BLOCK
PARTS = 6
OLD = pattern(PARTS * PART - 100)
BLOCKS = -(-len(OLD) // BLOCK)


def make_parts_small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (times, dating):
        monkeypatch.setattr(module, "PART_BYTES", PART)


class UsedRig(Rig):
    """Free blocks read as zeros, once they are known."""

    def request(self, boot_id: bytes = BOOT) -> Request:
        return replace(super().request(boot_id), protect=Protect.USED)


def resume(rig: Rig) -> None:
    assert rig.store is not None
    resume_times(rig.store)


def finish(rig: Rig) -> None:
    assert rig.store is not None
    finish_times(rig.store, rig.cut)


def cut(rig: Rig, name: str = "") -> None:
    """The next one, and its table as far as it can be made without a map."""
    assert rig.store is not None
    before = rig.store.hold_cut()
    rig.make_cut(name)
    follow_times(rig.store, rig.cut, before)
    before.let_go()


def times_of(rig: Rig, generation: int | None = None) -> list[int]:
    """Of all parts, in a cut, the present one without a `generation`."""
    assert rig.store is not None
    one = next(one for one in rig.store.cuts if one.generation == (generation or rig.cut.generation))
    table = PartTimes(one, rig.geometry)
    try:
        assert table.is_valid
        return [table.changed_ns(at, min(PART, len(OLD) - at)) for at in range(0, len(OLD), PART)]
    finally:
        table.close()


def differing(one: list[int], other: list[int]) -> list[int]:
    return [part for part in range(PARTS) if one[part] != other[part]]
