"""The mounts of these tests, and images whose free blocks hold something that must never be seen."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.extend(str(Path(__file__).parents[1] / part) for part in ("mount", "cut", "usedmap"))

from used_rig import UsedGround


@pytest.fixture
def ground() -> Iterator[UsedGround]:
    """Where a test has its images, mount points and loop devices."""
    ground = UsedGround(Path(tempfile.mkdtemp(prefix="snapfs-used-", dir="/var/tmp")).resolve())
    try:
        yield ground
    finally:
        wrong = ground.close()
    assert not wrong, "\n".join(wrong)
