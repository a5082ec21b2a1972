"""`snapfs mount` that is interrupted before its views answer: it ends its daemon, and waits for that; in front it
says so, too."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

import snapfs.commands.daemon as daemon_of
from snapfs.servers.pipe import READY
from snapfs.system.signals import Signals

_INSTANCE: Any = SimpleNamespace(store=SimpleNamespace(control=SimpleNamespace(is_unseen=True)))


class Daemon:
    """One that reports at once, says so on `there` too, and ends when it is told to."""

    def __init__(self) -> None:
        self.pid = 0
        self.there, self._told = os.pipe()

    def run(self, _instance: Any, report_fd: int, _taken_back: Any) -> NoReturn:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        os.write(report_fd, READY)
        os.write(self._told, b"x")
        while True:
            signal.pause()

    @property
    def is_waited_for(self) -> bool:
        try:
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return False

    def close(self) -> None:
        os.close(self.there)
        os.close(self._told)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    daemon, fork = Daemon(), os.fork

    def noted_fork() -> int:
        daemon.pid = fork()
        return daemon.pid

    monkeypatch.setattr(os, "fork", noted_fork)
    monkeypatch.setattr(daemon_of, "_become_daemon", daemon.run)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    yield daemon
    if not daemon.is_waited_for:
        os.kill(daemon.pid, signal.SIGKILL)
        os.waitpid(daemon.pid, 0)
    daemon.close()


def test_a_daemon_that_has_reported_is_ended(daemon: Daemon) -> None:
    class Interrupted(Signals):
        def check(self) -> None:
            os.read(daemon.there, 1)
            raise KeyboardInterrupt

    with Interrupted.handled() as signals, pytest.raises(KeyboardInterrupt):
        daemon_of.run_behind(_INSTANCE, signals)
    assert daemon.is_waited_for


def test_a_daemon_that_was_just_started_is_ended(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    close, fork = os.close, os.fork

    def close_and_signal(fd: int) -> None:
        """The first that is done once the daemon has been started."""
        close(fd)
        os.read(daemon.there, 1)
        monkeypatch.undo()
        os.kill(os.getpid(), signal.SIGTERM)

    def fork_then() -> int:
        pid = fork()
        if pid:
            monkeypatch.setattr(os, "close", close_and_signal)
        return pid

    monkeypatch.setattr(os, "fork", fork_then)
    with Signals.handled() as signals, pytest.raises(KeyboardInterrupt):
        daemon_of.run_behind(_INSTANCE, signals)
    assert daemon.is_waited_for


def test_one_in_front_that_ends_before_its_views_answer_was_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_of, "configure_log", lambda *_: None)
    monkeypatch.setattr(daemon_of, "dump_stacks_on_signal", lambda: None)
    monkeypatch.setattr(daemon_of, "Supervisor", lambda _instance, _report: SimpleNamespace(run=lambda: 0))
    instance: Any = SimpleNamespace(options=SimpleNamespace(log_level="info"))
    with pytest.raises(KeyboardInterrupt):
        daemon_of.run_in_front(instance, lambda: None)
