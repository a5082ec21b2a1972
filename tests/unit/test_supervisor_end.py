"""A supervisor in front that is told to end once more when its servers have ended: it ends what it is at."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from snapfs.supervising.ending import InstanceEnd
from snapfs.supervising.running import Running
from snapfs.supervising.supervisor import Supervisor
from snapfs.system.signals import Signals


def test_it_is_not_broken_off_while_it_removes_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def finish(end: InstanceEnd, is_ours: bool) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        ended.append(end)
        return 0

    monkeypatch.setattr(Running, "start", lambda running, name: None)
    monkeypatch.setattr(InstanceEnd, "stop_servers", lambda end: None)
    monkeypatch.setattr(InstanceEnd, "finish", finish)
    store = SimpleNamespace(control=SimpleNamespace(is_unseen=False))
    instance: Any = SimpleNamespace(options=SimpleNamespace(on_event=None), store=store)
    supervisor = Supervisor(instance, lambda sentence: None)
    supervisor._ending.begin()
    with Signals.handled(), suppress(KeyboardInterrupt):
        supervisor.run()
    assert ended
