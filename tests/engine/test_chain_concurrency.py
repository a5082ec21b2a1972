"""A process that reads each snapshot of a chain, while all of the rest goes on: nothing stale, nothing torn."""

from __future__ import annotations

from pathlib import Path

import pytest
from busy_chain import BusyChain, Plan

from cow.disk.layout import Durability


@pytest.mark.parametrize("durability", list(Durability))
def test_readers_of_every_snapshot_at_once(tmp_path: Path, durability: Durability) -> None:
    chain = BusyChain(tmp_path, Plan(2, durability))
    try:
        chain.run()
    finally:
        chain.rig.close()
    assert chain.counts["deleted"]
    assert chain.counts["reads"]
