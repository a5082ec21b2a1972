"""Exit codes, output that cannot be written, and numbers that are too large: one sentence each."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from command_line import SNAPFS, Bench, Done, mounted, snapfs


def into(out: int | str, *words: str | Path) -> Done:
    """`snapfs WORDS` with its standard output there."""
    fd = os.open(out, os.O_WRONLY) if isinstance(out, str) else out
    try:
        done = subprocess.run([SNAPFS, *words], stdout=fd, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(fd)
    return Done(done.returncode, "", done.stderr)


def into_nothing(*words: str | Path) -> Done:
    """`snapfs WORDS` into a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return into(writer, *words)


@pytest.mark.parametrize("words", ["map IMAGE", "map IMAGE --json", "--version", "--help", "status --help"])
def test_a_reader_that_went_away(bench: Bench, words: str) -> None:
    done = into_nothing(*(bench.image if word == "IMAGE" else word for word in words.split()))
    assert (done.code, done.err) == (141, "")


@pytest.mark.parametrize("words", ["status LIVE", "status LIVE --json", "snapshot LIVE", "check LIVE"])
def test_a_reader_of_an_instance_that_went_away(bench: Bench, words: str) -> None:
    with bench.mounted():
        done = into_nothing(*(bench.live if word == "LIVE" else word for word in words.split()))
    assert (done.code, done.err) == (141, "")


@pytest.mark.parametrize("words", [["status"], ["map"], ["map", "--json"], ["check", "--dump"]], ids=" ".join)
def test_a_full_standard_output(bench: Bench, words: list[str]) -> None:
    with bench.mounted():
        done = into("/dev/full", words[0], bench.live, *words[1:])
        done.refuses(1, "The standard output cannot be written: No space left on device")


@pytest.mark.parametrize("rate", ["0", "0K", "-1", "fast"])
def test_impossible_rates(bench: Bench, rate: str) -> None:
    with bench.untouched():
        snapfs("backup", bench.image, bench.path / "backup", f"--rate={rate}").refuses(2, rate)
        snapfs("restore", bench.path / "backup", bench.path / "new", f"--rate={rate}").refuses(2, rate)


@pytest.mark.parametrize("option", ["--freeze-timeout", "--hook-timeout"])
@pytest.mark.parametrize("time", ["inf", "nan", "3000000", "1e400", "0", "-1", "soon", "86401"])
def test_impossible_times(bench: Bench, option: str, time: str) -> None:
    snapfs("snapshot", bench.live, f"{option}={time}").refuses(2, f"A time of {time} is not possible")


@pytest.mark.parametrize("command", ["mount", "map", "backup"])
def test_an_image_over_the_limit(bench: Bench, tmp_path: Path, command: str) -> None:
    with mounted("none", tmp_path / "large", "-t", "tmpfs", "-o", "size=1M") as place:
        image = place / "large.img"
        image.touch()
        os.truncate(image, (16 << 40) + 1)
        words = {"mount": [bench.live, bench.snap], "map": [], "backup": [bench.path / "backup"]}
        snapfs(command, image, *words[command]).refuses(1, "images up to 16 TiB")


def test_release_beyond_the_end(bench: Bench) -> None:
    with bench.mounted():
        snapfs("release", bench.live, "--offset=8000000T").refuses(2, "the image ends at")
        snapfs("release", bench.live, "--offset=0", "--length=8000000T").refuses(2, "do not lie in the image")
        snapfs("release", bench.live, "--offset=4K", "--length=0").refuses(2, "0 bytes at 4096")
