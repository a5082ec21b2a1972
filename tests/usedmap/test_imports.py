"""The reader of a filesystem is loaded when one of its kind is found."""

from __future__ import annotations

import subprocess
import sys

import pytest

from snapfs.usedmap.readers import READERS
from snapfs.usedmap.result import MapError
from snapfs.usedmap.source import Source


def test_a_process_that_draws_maps_begins_without_arrays() -> None:
    program = "import sys, snapfs.servers.mapper; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("kind", READERS)
def test_every_reader_is_there_and_refuses_nothing_at_all(kind: str) -> None:
    with open("/dev/null", "rb") as file, pytest.raises(MapError):
        READERS[kind](Source(file.fileno(), 0))
