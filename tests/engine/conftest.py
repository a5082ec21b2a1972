"""Rigs that are closed whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_rig import Rig

from cow.mount import recovery


@pytest.fixture(autouse=True)
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a beat and its write a test may copy all there is, which takes as long as the machine wants."""
    monkeypatch.setattr(recovery, "_HEARTBEAT_SLACK_NS", 5_000_000_000)


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
