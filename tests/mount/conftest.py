"""Real mounts that are gone after each test, also one that failed; an unexpected line in a log is a failure."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounted import Ground


@pytest.fixture
def ground() -> Iterator[Ground]:
    """Where a test has its images, mount points and loop devices."""
    ground = Ground(Path(tempfile.mkdtemp(prefix="snapfs-test-", dir="/var/tmp")).resolve())
    try:
        yield ground
    finally:
        wrong = ground.close()
    assert not wrong, "\n".join(wrong)
