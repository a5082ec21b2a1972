"""A cut is that of the client that asked for it, or it is not taken: whoever gave up has cancelled, and of two
clients each is told of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cut_rig import MIB, CutGround, finished, is_frozen, snapfs
from mounted import Mounted, wait_until

from snapfs.client import connected
from snapfs.protocol import PrepareCut, TakeCut, deadline_in
from snapfs.wire import request_line


@pytest.fixture
def instance(ground: CutGround) -> Mounted:
    return ground.mounted(ground.made("ext4", 64 * MIB))


@pytest.fixture
def point(ground: CutGround, instance: Mounted) -> Path:
    """The filesystem in it, mounted."""
    return ground.filesystem(instance)


def present(instance: Mounted) -> dict[str, Any]:
    snapshot: dict[str, Any] = instance.status()["snapshot"]
    return snapshot


def cuts(instance: Mounted) -> list[str]:
    return sorted(path.name for path in instance.store.glob("cut-*"))


@contextmanager
def stopped_server(instance: Mounted) -> Iterator[None]:
    live = instance.processes["live"]
    live.send(signal.SIGSTOP)
    try:
        yield
    finally:
        live.send(signal.SIGCONT)


def go_on(process: subprocess.Popen[str], until: str) -> None:
    """Let one that has stopped go on until it tells what is to be waited for."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    while (line := process.stdout.readline()) != f"{until}\n":
        assert line, "it has ended"


def test_a_cut_that_was_given_up_is_not_taken(ground: CutGround, instance: Mounted, point: Path) -> None:
    before, kept = present(instance), cuts(instance)
    process = ground.stopping_cut(instance.live, "--freeze-timeout", "0.5", deadline="told")
    with stopped_server(instance):
        go_on(process, until="given up")
    code, _, err = finished(process)
    assert code == 1
    assert "does not answer" in err
    assert not is_frozen(point)
    wait_until(lambda: cuts(instance) == kept, what="the end of the cut that was only prepared")
    assert present(instance)["id"] == before["id"]


def test_a_cut_whose_client_has_gone_is_not_taken(instance: Mounted) -> None:
    before, kept = present(instance), cuts(instance)
    with connected(instance.store) as connection:
        generation = connection.ask(PrepareCut(deadline_s=deadline_in(30))).generation
        assert len(cuts(instance)) == 2
        with stopped_server(instance), socket.socket(fileno=os.dup(connection.fileno())) as sock:
            sock.sendall(request_line(TakeCut(generation=generation, deadline_s=deadline_in(30))))
            # Of both descriptors, so that it is closed when the server goes on.
            sock.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: cuts(instance) == kept, what="the end of the cut that was only prepared")
    assert present(instance)["id"] == before["id"]


def test_of_two_clients_each_is_told_of_its_own_cut(ground: CutGround, instance: Mounted, point: Path) -> None:
    first = ground.stopping_cut(instance.live, at="cut-facts")
    second = ground.stopping_cut(instance.live, "--no-freeze", at="prepare-cut", deadline="told")
    go_on(second, until="asked")
    before = present(instance)["id"]
    code, out, err = finished(first, "\n")
    assert (code, err) == (0, "")
    taken = json.loads(out)
    assert (taken["id"], taken["frozen"]) == (before, [str(point)])
    code, out, err = finished(second)
    assert (code, err) == (0, "")
    taken, now = json.loads(out.splitlines()[-1]), present(instance)
    assert (now["id"], now["freeze_ms"]) == (taken["id"], None)
    (facts,) = [json.loads(path.read_text()) for path in instance.store.glob("cut-*/facts.json")]
    assert facts["frozen"] == []


def test_no_cut_is_taken_between_another_one_and_its_facts(ground: CutGround, instance: Mounted, point: Path) -> None:
    first = ground.stopping_cut(instance.live, at="cut-facts")
    taken = present(instance)["id"]
    patched = (
        "import snapfs.commands.cut_instance as s; s._PREPARE_TIMEOUT_S = 2; import snapfs.cli; snapfs.cli.main()"
    )
    second = subprocess.run(
        [sys.executable, "-c", patched, "snapshot", instance.live, "--no-freeze"],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert second.returncode == 1
    wanted = f"Another snapshot is being taken by process {first.pid}; try again when it is there."
    assert wanted in second.stderr
    assert present(instance)["id"] == taken
    assert finished(first, "\n")[0] == 0


def test_the_turn_of_a_client_that_was_killed_is_over(ground: CutGround, instance: Mounted, point: Path) -> None:
    first = ground.stopping_cut(instance.live, at="cut-facts")
    first.kill()
    done = snapfs("snapshot", instance.live, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frozen"] == [str(point)]
