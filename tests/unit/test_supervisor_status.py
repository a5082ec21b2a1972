"""What the supervisor tells the service manager of servers that died."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapfs.servers.instance import COMPACTOR, SNAPSHOT
from snapfs.supervising import missing

NO_VIEW = "the snapshot server died: the snapshot cannot be read until it is started again"
NO_ROOM = "the compactor died: the side buffer is full sooner until it is started again"


def test_all_is_well_only_when_the_last_one_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(missing, "tell_status", told.append)
    monkeypatch.setattr(missing, "request", lambda store, message, timeout_s: None)
    instance: Any = SimpleNamespace(store=SimpleNamespace(path=tmp_path), summary="well")
    running: Any = None
    servers = missing.Missing(instance, running)
    for name in (SNAPSHOT, COMPACTOR):
        servers.replace(name, "was killed by signal 9")
    for name in (COMPACTOR, SNAPSHOT):
        servers.note_back(name)
    assert told == [NO_VIEW, f"{NO_VIEW}; {NO_ROOM}", NO_VIEW, "well"]
