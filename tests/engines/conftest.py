"""Backup programs of others over what snapfs shows; they use the rigs of mounted images."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(1, str(Path(__file__).parents[1] / "mount"))

from ground import Ground, new_ground


@pytest.fixture
def ground() -> Iterator[Ground]:
    """Where a test has its images, mount points and repositories."""
    with new_ground(Ground, "snapfs-test-") as ground:
        yield ground


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.engines)
