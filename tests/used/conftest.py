"""The mounts of these tests, and images whose free blocks hold something that must never be seen."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.extend(str(Path(__file__).parents[1] / part) for part in ("mount", "cut", "usedmap"))

from ground import new_ground
from used_rig import UsedGround


@pytest.fixture
def ground() -> Iterator[UsedGround]:
    """Where a test has its images, mount points and loop devices."""
    with new_ground(UsedGround, "snapfs-used-") as ground:
        yield ground
