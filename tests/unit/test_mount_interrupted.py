"""`snapfs mount` that is interrupted when the daemon has just reported: it ends the daemon, and waits for that."""

from __future__ import annotations

import gc
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

import snapfs.commands.mount as mount
from snapfs.servers.pipe import READY
from snapfs.system.signals import Signals


def test_a_daemon_that_has_reported_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    there, told = os.pipe()

    def reported(_instance: Any, report_fd: int) -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        os.write(report_fd, READY)
        os.write(told, b"x")
        while True:
            signal.pause()

    class Interrupted(Signals):
        def check(self) -> None:
            os.read(there, 1)
            raise KeyboardInterrupt

    fork, daemons = os.fork, list[int]()

    def noted_fork() -> int:
        pid = fork()
        daemons.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", noted_fork)
    monkeypatch.setattr(mount, "_become_daemon", reported)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    with Interrupted.handled() as signals, pytest.raises(KeyboardInterrupt):
        mount._run_behind(SimpleNamespace(), signals)  # type: ignore[arg-type]
    with pytest.raises(ChildProcessError):
        os.waitpid(daemons[0], os.WNOHANG)
    os.close(there)
    os.close(told)
