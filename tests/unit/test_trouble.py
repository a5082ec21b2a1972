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
    cuts = [SimpleNamespace(generation=1, snapshot_id=b"older"), SimpleNamespace(generation=2, snapshot_id=b"newest")]
    store: Any = SimpleNamespace(header=SimpleNamespace(cuts=cuts), cut=SimpleNamespace(generation=2))
    Trouble(store).on_event(Event(EventKind.OVERFLOW, 5, is_on_disk=False))
    assert noted == [b"older", b"newest"]


def test_the_one_that_gives_way_alone_is_noted_so(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    noted: list[bytes] = []
    monkeypatch.setattr(snapfs.servers.trouble, "note_lost", noted.append)
    cuts = [SimpleNamespace(generation=one, snapshot_id=b"%d" % one, name=f"n{one}") for one in (1, 2)]
    header = SimpleNamespace(cuts=cuts, cut_of=lambda generation: cuts[generation - 1])
    store: Any = SimpleNamespace(header=header, cut=SimpleNamespace(generation=2))
    Trouble(store).on_event(Event(EventKind.GAVE_WAY, 28, is_on_disk=False, generation=1))
    assert noted == [b"1"]
    assert "the oldest snapshot (n1) is lost" in caplog.text
