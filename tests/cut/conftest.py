"""The mounts of these tests; whatever a test has left frozen is thawed before they are undone."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(1, str(Path(__file__).parents[1] / "mount"))

from cut_rig import CutGround


@pytest.fixture
def ground() -> Iterator[CutGround]:
    """Where a test has its images, mount points and loop devices."""
    ground = CutGround(Path(tempfile.mkdtemp(prefix="snapfs-cut-", dir="/var/tmp")).resolve())
    try:
        yield ground
    finally:
        wrong = ground.close()
    assert not wrong, "\n".join(wrong)
