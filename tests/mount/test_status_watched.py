"""`snapfs status --watch`: a line for each look, a picture in a terminal, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ground import Ground
from mounted import COMMAND_TIMEOUT_S, SNAPFS, Mounted, snapfs, wait_until

from snapfs.system.processes import readable

MIB = 1 << 20


@pytest.fixture(scope="module")
def watched(module_ground: Ground) -> Mounted:
    return module_ground.mounted(module_ground.image(MIB), "--protect", "all", "--buffer-limit", "4M")


@contextmanager
def watching(*words: str | Path, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[str]]:
    command = [os.fspath(SNAPFS), "status", *map(str, words)]
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=COMMAND_TIMEOUT_S)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    assert readable([process.stdout.fileno()], COMMAND_TIMEOUT_S)
    return process.stdout.readline()


def interrupted(process: subprocess.Popen[str]) -> tuple[int, str]:
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
    return process.returncode, err


def test_each_look_is_a_line_until_it_is_interrupted(watched: Mounted) -> None:
    with watching("--watch", "0.01", watched.live) as process:
        for _ in range(3):
            said = line(process)
            assert f"  {watched.live}  active  used 1 MiB  owed 1 MiB  preserved 0 B" in said
            assert said.endswith("buffer 0 B of 4 MiB (0 %)  1 snapshot\n")
        assert interrupted(process) == (0, "")


def test_it_needs_no_time_and_no_name(watched: Mounted) -> None:
    with watching("--watch") as process:
        assert str(watched.live) in line(process)
    with watching("--watch", watched.live) as process:
        assert str(watched.live) in line(process)


def test_programs_have_an_object_for_each_look(watched: Mounted) -> None:
    with watching(watched.live, "--watch=0.01", "--json") as process:
        assert [json.loads(line(process))["live"] for _ in range(2)] == [str(watched.live)] * 2


def test_a_terminal_has_a_picture(watched: Mounted) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen, watching("--watch", stdout=theirs) as process:
        os.close(theirs)
        seen = b""
        while b"written since" not in seen:
            assert readable([ours], COMMAND_TIMEOUT_S)
            seen += screen.read(4096)
        assert b"side buffer" in seen
        assert interrupted(process) == (0, "")


def test_it_ends_with_the_instance_and_says_so(ground: Ground) -> None:
    instance = ground.mounted(ground.image(MIB))
    with watching("--watch", "0.01", instance.live) as process:
        line(process)
        instance.umount()
        _, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
        assert (process.returncode, err) == (0, f"snapfs: {instance.live} is not mounted any more.\n")


def test_what_is_written_meanwhile_has_a_rate(ground: Ground) -> None:
    instance = ground.mounted(ground.image(os.urandom(MIB)), "--protect", "all", "--cache", "writethrough")
    with watching("--watch", "0.01", instance.live) as process:
        line(process)
        with instance.live_file.open("r+b", buffering=0) as file:
            file.write(os.urandom(MIB))
        wait_until(lambda: "/s)" in line(process))


def test_there_must_be_something_to_watch(ground: Ground) -> None:
    done = snapfs("status", "--watch", ground.path)
    assert done.returncode == 1
    assert snapfs("status", "--watch", "-q").returncode == 2
    assert snapfs("status", "--watch", "0").returncode == 2


@pytest.mark.parametrize("named", [True, False])
def test_a_look_leaves_nothing_open(watched: Mounted, named: bool) -> None:
    with watching("--watch", "0.01", *([watched.live] if named else [])) as process:
        line(process)
        open_files = Path("/proc", str(process.pid), "fd")
        line(process)
        before = len(list(open_files.iterdir()))
        for _ in range(10):
            line(process)
        # One may be in the midst of a look.
        assert len(list(open_files.iterdir())) < before + 5


def test_a_terminal_without_a_screen_has_lines(watched: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen, watching("--watch", watched.live, stdout=theirs) as process:
        os.close(theirs)
        assert readable([ours], COMMAND_TIMEOUT_S)
        assert f"  {watched.live}  active".encode() in screen.read(4096)
        assert interrupted(process) == (0, "")


def test_it_ends_with_its_terminal(watched: Mounted) -> None:
    ours, theirs = pty.openpty()
    with watching("--watch", "0.01", watched.live, stdout=theirs) as process:
        os.close(theirs)
        assert readable([ours], COMMAND_TIMEOUT_S)
        os.close(ours)
        _, err = process.communicate(timeout=COMMAND_TIMEOUT_S)
        assert (process.returncode, err) == (141, "")
