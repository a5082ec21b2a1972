"""What the live server remembers of snapshots that are lost."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

import snapfs.servers.trouble
from cow import Event, EventKind
from snapfs.servers.trouble import Trouble


def test_all_snapshots_are_noted_as_lost_where_the_store_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[bytes] = []
    monkeypatch.setattr(snapfs.servers.trouble, "note_lost", noted.append)
    cuts = [SimpleNamespace(snapshot_id=number) for number in (b"older", b"newest")]
    store: Any = SimpleNamespace(header=SimpleNamespace(cuts=cuts), cut=SimpleNamespace(generation=2))
    Trouble(store).on_event(Event(EventKind.OVERFLOW, 5, is_on_disk=False))
    assert noted == [b"older", b"newest"]
