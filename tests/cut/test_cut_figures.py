"""How long a cut takes, on an idle filesystem. The best of several: the machine may have more to do."""

from __future__ import annotations

import pytest
from cut_rig import GIB, TIB, CutGround, cut

# What it measures others would spoil.
pytestmark = pytest.mark.alone

TRIES = 5


@pytest.mark.parametrize(("fstype", "size_bytes"), [("ext4", GIB), ("xfs", GIB), ("btrfs", GIB), ("xfs", TIB)])
def test_an_idle_filesystem_is_frozen_for_milliseconds(ground: CutGround, fstype: str, size_bytes: int) -> None:
    instance = ground.mounted(ground.made(fstype, size_bytes), "--protect", "all")
    ground.filesystem(instance)
    taken = [cut(instance.live) for _ in range(TRIES)]
    print(fstype, size_bytes >> 30, "GiB", sorted(one["freeze_ms"] for one in taken))
    assert min(one["freeze_ms"] for one in taken) < 50


def test_a_cut_of_16_tib_takes_milliseconds(ground: CutGround) -> None:
    # One block less than ext4, where the tests may run, lets a file have.
    instance = ground.mounted(ground.image(16 * TIB - 4096), "--protect", "all")
    taken = [cut(instance.live) for _ in range(TRIES)]
    print("16 TiB", sorted(one["cut_ms"] for one in taken))
    assert min(one["cut_ms"] for one in taken) < 5
    assert {one["freeze_ms"] for one in taken} == {None}
