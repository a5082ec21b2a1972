"""What is shown while it works."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess

from imager_rig import MIB, Bench, names_in, running, snapfs

from tests.cli.command_line import SNAPFS

KEYS = {"phase", "done_bytes", "total_bytes", "bytes_per_s", "left_s", "buffer_bytes", "is_done"}


def test_json_lines_end_with_all_done(bench: Bench) -> None:
    with bench.mounted():
        done = snapfs("backup", bench.live, bench.path / "backup", "--verify", "--progress", "json").ok()
    lines = [json.loads(line) for line in done.err.splitlines()]
    assert all(set(line) == KEYS for line in lines)
    last = {line["phase"]: line for line in lines}
    for phase in ("backup", "verify"):
        assert last[phase]["is_done"]
        assert last[phase]["done_bytes"] == last[phase]["total_bytes"] > 20 * MIB
    assert last["backup"]["buffer_bytes"] is not None


def test_nothing_is_said_to_who_wants_quiet(bench: Bench) -> None:
    done = snapfs("backup", bench.image, bench.path / "backup", "-q").ok()
    assert (done.out, done.err) == ("", "")
    done = snapfs("restore", bench.path / "backup", bench.path / "restored.img", "-q").ok()
    assert (done.out, done.err) == ("", "")


def test_a_terminal_gets_a_bar(bench: Bench) -> None:
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen([SNAPFS, "backup", bench.image, bench.path / "backup"], stderr=theirs)
        os.close(theirs)
        shown = b""
        try:
            while piece := os.read(ours, 65536):
                shown += piece
        except OSError:
            pass  # a terminal whose other side is closed
        assert process.wait(60) == 0
    finally:
        os.close(ours)
    assert b"backing up" in shown
    assert b"MiB" in shown


def test_a_termination_is_as_clean_as_an_interrupt(bench: Bench) -> None:
    with running("backup", bench.image, bench.path / "backup", "--rate", "12M") as process:
        process.await_bytes(18 * MIB)
        process.send(signal.SIGTERM)
        assert process.wait().code == 130
    assert "backup" not in names_in(bench.path)
    snapfs("backup", bench.image, bench.path / "backup", "--resume", "--verify").ok()


def test_a_terminated_restore_leaves_nothing(bench: Bench) -> None:
    snapfs("backup", bench.image, bench.path / "backup").ok()
    before = names_in(bench.path)
    with running("restore", bench.path / "backup", bench.path / "restored.img", "--rate", "12M") as process:
        process.await_bytes(4 * MIB)
        process.send(signal.SIGTERM)
        assert process.wait().code == 130
    assert names_in(bench.path) == before
