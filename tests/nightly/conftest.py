"""An image, a directory for its backups, and a place where nothing of a test stays."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(1, str(Path(__file__).parents[1] / "imager"))

from nightly_rig import Nights, new_nights


@pytest.fixture
def nights() -> Iterator[Nights]:
    with new_nights() as nights:
        yield nights
