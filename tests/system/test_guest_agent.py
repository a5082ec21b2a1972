"""The connection to a guest agent, shared by a command and its watchdog."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(1, str(Path(__file__).parents[1] / "cut"))

from fake_agent import FakeAgent

from snapfs.freezing import guest_agent
from snapfs.freezing.guest_agent import GuestAgent


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[GuestAgent]:
    fake = FakeAgent(tmp_path / "qga.sock")
    agent = GuestAgent(tmp_path / "qga.sock")
    yield agent
    agent.close()
    fake.close()


def forked(agent: GuestAgent, times: int) -> int:
    """A process that thaws `times` times; it ends with 0 when all of them were answered."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            for _ in range(times):
                agent.thaw()
            code = 0
        finally:
            os._exit(code)
    return pid


def test_two_processes_that_thaw_get_their_own_answers(agent: GuestAgent) -> None:
    pid = forked(agent, 100)
    for _ in range(100):
        agent.thaw()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_the_turn_of_a_killed_process_ends(agent: GuestAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_agent, "_PATIENCE_S", 60.0)
    has_it, says = os.pipe()
    pid = os.fork()
    if not pid:
        with agent._turn():
            os.write(says, b"+")
            signal.pause()
    assert os.read(has_it, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    started = time.monotonic()
    agent.thaw()
    assert time.monotonic() - started < 30
    os.close(has_it)
    os.close(says)
