"""Rigs that are closed whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_rig import Rig


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(old: bytes, **options: Any) -> Rig:
        directory = tmp_path / f"rig{len(rigs)}"
        directory.mkdir()
        rigs.append(Rig(directory, old, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()
