"""An image, a directory for its backups, and a place where nothing of a test stays."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(1, str(Path(__file__).parents[1] / "imager"))

from nightly_rig import MIB, Nights


@pytest.fixture
def nights() -> Iterator[Nights]:
    """4 MiB and a bit of random image, which no cell and no sector divides."""
    nights = Nights(Path(tempfile.mkdtemp(prefix="snapfs-nightly-", dir="/var/tmp")).resolve())
    try:
        nights.image.write_bytes(os.urandom(4 * MIB + 700))
        nights.live.mkdir()
        nights.snap.mkdir()
        nights.backups.mkdir()
        yield nights
    finally:
        nights.clean_up()
