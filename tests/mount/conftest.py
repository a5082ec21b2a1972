"""Real mounts that are gone after each test, also one that failed; an unexpected line in a log is a failure."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounted import Ground


@contextmanager
def new_ground() -> Iterator[Ground]:
    ground = Ground(Path(tempfile.mkdtemp(prefix="snapfs-test-", dir="/var/tmp")).resolve())
    try:
        yield ground
    finally:
        wrong = ground.close()
    assert not wrong, "\n".join(wrong)


@pytest.fixture
def ground() -> Iterator[Ground]:
    """Where a test has its images, mount points and loop devices."""
    with new_ground() as ground:
        yield ground


@pytest.fixture(scope="module")
def module_ground() -> Iterator[Ground]:
    """The same for all tests of a module: they look at what is mounted there, and change nothing."""
    with new_ground() as ground:
        yield ground
