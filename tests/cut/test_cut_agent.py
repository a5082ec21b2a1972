"""The guest agent of QEMU: the guest is frozen for the cut and thawed in any case."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cut_rig import MIB, CutGround, cut, finished, snapfs
from fake_agent import FakeAgent
from mounted import Mounted, wait_until


@pytest.fixture
def agent() -> Iterator[FakeAgent]:
    with tempfile.TemporaryDirectory(prefix="snapfs-qga-") as directory:
        agent = FakeAgent(Path(directory) / "qga.sock")
        yield agent
        agent.close()


@pytest.fixture
def instance(ground: CutGround) -> Mounted:
    return ground.mounted(ground.image(16 * MIB))


def snapshot_id(instance: Mounted) -> str:
    return str(instance.status()["snapshot"]["id"])


def test_the_guest_is_frozen_for_the_cut(instance: Mounted, agent: FakeAgent) -> None:
    taken = cut(instance.live, "--quiesce", f"qga:{agent.path}")
    assert taken["frozen"] == [f"qga:{agent.path}"]
    assert taken["freeze_ms"] > 0
    asked = [command for command in agent.commands if command != "guest-sync-delimited"]
    assert asked == ["guest-fsfreeze-status", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"]
    assert agent.status == "thawed"


def test_what_another_client_left_unread_is_thrown_away(instance: Mounted, agent: FakeAgent) -> None:
    agent.unread = b'{"return": 99}\n{"half'
    assert cut(instance.live, "--quiesce", f"qga:{agent.path}")["frozen"]


def test_a_guest_that_cannot_be_frozen_cancels_the_cut(instance: Mounted, agent: FakeAgent) -> None:
    agent.errors["guest-fsfreeze-freeze"] = "failed to freeze /boot"
    before = snapshot_id(instance)
    done = snapfs("snapshot", instance.live, "--quiesce", f"qga:{agent.path}")
    assert done.returncode == 1
    assert "failed to freeze /boot" in done.stderr
    assert agent.commands[-1] == "guest-fsfreeze-thaw"
    assert snapshot_id(instance) == before


def test_a_guest_without_filesystems_cancels_the_cut(instance: Mounted, agent: FakeAgent) -> None:
    agent.filesystems = 0
    done = snapfs("snapshot", instance.live, "--quiesce", f"qga:{agent.path}")
    assert done.returncode == 1
    assert "no filesystem that can be frozen" in done.stderr


def test_an_answer_that_does_not_come_cancels_and_thaws(instance: Mounted, agent: FakeAgent) -> None:
    agent.silent.add("guest-fsfreeze-freeze")
    done = snapfs("snapshot", instance.live, "--quiesce", f"qga:{agent.path}", "--freeze-timeout", "0.5")
    assert done.returncode == 1
    assert "guest-fsfreeze-thaw" in agent.commands


def test_a_guest_that_somebody_else_froze_is_left_alone(instance: Mounted, agent: FakeAgent) -> None:
    agent.status = "frozen"
    done = snapfs("snapshot", instance.live, "--quiesce", f"qga:{agent.path}")
    assert done.returncode == 1
    assert "already frozen by somebody else" in done.stderr
    assert agent.status == "frozen"


def test_a_killed_command_leaves_the_guest_thawed(ground: CutGround, instance: Mounted, agent: FakeAgent) -> None:
    process = ground.stopping_cut(instance.live, "--quiesce", f"qga:{agent.path}")
    assert agent.status == "frozen"
    process.kill()
    wait_until(lambda: agent.status == "thawed")


def test_the_guest_is_thawed_after_the_time(ground: CutGround, instance: Mounted, agent: FakeAgent) -> None:
    process = ground.stopping_cut(instance.live, "--quiesce", f"qga:{agent.path}", "--freeze-timeout", "0.3")
    wait_until(lambda: agent.status == "thawed")
    code, _, err = finished(process, "\n")
    assert code == 4
    assert "had been thawed before it was" in err


def test_no_agent_is_said(instance: Mounted) -> None:
    done = snapfs("snapshot", instance.live, "--quiesce", "qga:/nonexistent.sock")
    assert done.returncode == 1
    assert "The guest agent behind /nonexistent.sock cannot be used (No such file or directory)" in done.stderr


def test_a_word_that_names_no_agent_is_a_wrong_command_line(instance: Mounted) -> None:
    assert snapfs("snapshot", instance.live, "--quiesce", "vmware").returncode == 2
