"""What the supervisor tells the service manager of servers that died."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from snapfs import supervisor
from snapfs.servers.instance import COMPACTOR, SNAPSHOT


def test_all_is_well_only_when_the_last_one_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(supervisor, "tell_status", told.append)
    monkeypatch.setattr(supervisor, "request", lambda store, message, timeout_s: None)
    instance: Any = SimpleNamespace(
        options=SimpleNamespace(on_event=None), store=SimpleNamespace(path=tmp_path), summary="well"
    )
    watcher = supervisor.Supervisor(instance, lambda sentence: None)
    for name, trouble in ((SNAPSHOT, "no view"), (COMPACTOR, "no room"), (COMPACTOR, None), (SNAPSHOT, None)):
        watcher._note_server(name, trouble)
    assert told == ["no view", "no view; no room", "no view", "well"]
