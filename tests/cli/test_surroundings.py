"""Whoever starts snapfs may have left the process in any state: it works, or says in one true sentence why not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from command_line import SNAPFS, TIMEOUT_S, Bench, Done, mount_points_below, processes_about, wait_until

SENTENCE = re.compile(r"snapfs: [^\n;]+; [^\n]+\.\n")


def started(bench: Bench, way: str, *, directory: Path | None = None, words: str = "") -> Done:
    """`snapfs mount` as the end of the shell command `way`, which has $* for it."""
    command = words or f"{SNAPFS} mount {bench.image} {bench.live} {bench.snap}"
    done = subprocess.run(
        ["bash", "-c", way.replace("$*", command)], capture_output=True, timeout=TIMEOUT_S, cwd=directory, check=False
    )
    return Done(done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode(errors="replace"))


WORKS = {
    "stdin closed": "$* <&-",
    "stdout closed": "$* >&-",
    "stderr closed": "$* 2>&-",
    "all closed": "$* <&- >&- 2>&-",
    "nobody can write or read new files": "umask 777; $*",
    "everybody can": "umask 000; $*",
    "no environment": "env -i $*",
    "no temporary directory": "TMPDIR=/nonexistent/" + "x" * 200 + " $*",
    "a limit that fits": "ulimit -v 400000; $*",
    "signals ignored": "trap '' CHLD TERM INT HUP PIPE USR1 USR2; $*",
}


@pytest.mark.parametrize("what", WORKS)
def test_mount_works(bench: Bench, what: str) -> None:
    old = bench.image.read_bytes()
    done = started(bench, WORKS[what])
    assert done.code == 0, done.err
    assert bench.snap_file.read_bytes() == bench.live_file.read_bytes() == old
    assert bench.default_store.stat().st_mode & 0o777 == 0o700
    bench.umount().ok()
    assert bench.image.read_bytes() == old
    assert not bench.default_store.exists()


def test_mount_works_with_all_signals_blocked(bench: Bench) -> None:
    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    words = [SNAPFS, "mount", bench.image, bench.live, bench.snap]
    assert subprocess.run(words, preexec_fn=block, timeout=TIMEOUT_S, capture_output=True).returncode == 0
    os.kill(bench.status()["pid"], signal.SIGTERM)
    wait_until(lambda: not bench.default_store.exists() and not mount_points_below(bench.path))


@pytest.mark.parametrize(
    ("way", "word"),
    [("ulimit -n 32; $*", "ulimit -n"), ("ulimit -v 80000; $*", "ulimit -v")],
    ids=["files", "memory"],
)
def test_a_limit_that_is_too_low_is_named(bench: Bench, way: str, word: str) -> None:
    with bench.untouched():
        done = started(bench, way)
    assert done.code == 1
    assert SENTENCE.fullmatch(done.err), done.err
    assert word in done.err


def test_a_full_output_is_told_and_the_mount_is_there(bench: Bench) -> None:
    done = started(bench, "$* >/dev/full")
    assert done.code == 4
    assert SENTENCE.fullmatch(done.err), done.err
    assert "is mounted" in done.err
    assert bench.live_file.read_bytes() == bench.image.read_bytes()
    bench.umount().ok()


def test_errors_that_cannot_be_told_still_have_a_code(bench: Bench) -> None:
    assert started(bench, "$* 2>/dev/full", words=f"{SNAPFS} status {bench.live}").code == 1


def test_a_vanished_working_directory(bench: Bench) -> None:
    (bench.path / "gone").mkdir()
    way = f"rmdir {bench.path}/gone; $*"
    relative = started(bench, way, directory=bench.path / "gone", words=f"{SNAPFS} status live")
    assert relative.code == 1
    assert "working directory" in relative.err
    (bench.path / "gone").mkdir()
    assert started(bench, way, directory=bench.path / "gone").code == 0
    bench.umount().ok()


@pytest.mark.parametrize("locale", ["LC_ALL=C", "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0", "LC_ALL=C.UTF-8"])
def test_names_of_any_bytes_in_any_locale(bench: Bench, locale: str) -> None:
    image = Path(os.fsdecode(os.fsencode(bench.path) + b"/disk \xff \xc3\xa4.img"))
    bench.image.rename(image)
    bench.image = image
    done = started(bench, f"{locale} $*", words=f"{SNAPFS} mount '{image}' {bench.live} {bench.snap}")
    assert done.code == 0, done.err
    assert done.err == ""
    assert "live" in done.out
    assert started(bench, f"{locale} $*", words=f"{SNAPFS} status {bench.live}").code == 0
    assert started(bench, f"{locale} $*", words=f"{SNAPFS} umount '{image}'").code == 0
    assert not processes_about(bench.path)
