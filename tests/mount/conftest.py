"""Real mounts that are gone after each test, also one that failed; an unexpected line in a log is a failure."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ground import Ground, new_ground


@pytest.fixture
def ground() -> Iterator[Ground]:
    """Where a test has its images, mount points and loop devices."""
    with new_ground(Ground, "snapfs-test-") as ground:
        yield ground


@pytest.fixture(scope="module")
def module_ground() -> Iterator[Ground]:
    """The same for all tests of a module: they look at what is mounted there, and change nothing."""
    with new_ground(Ground, "snapfs-test-") as ground:
        yield ground
