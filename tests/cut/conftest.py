"""The mounts of these tests; whatever a test has left frozen is thawed before they are undone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(1, str(Path(__file__).parents[1] / "mount"))

from cut_rig import CutGround
from ground import new_ground


@pytest.fixture
def ground() -> Iterator[CutGround]:
    """Where a test has its images, mount points and loop devices."""
    with new_ground(CutGround, "snapfs-cut-") as ground:
        yield ground
