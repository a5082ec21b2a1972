"""Names that are there to steer a terminal, to forge a line or to break a picture: people read them escaped,
programs as they are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from command_line import Bench, Done, run, snapfs, wait_until
from PIL import Image

# An option, a line of its own, colours, a title, the other direction, markup of rich and of XML, and no UTF-8.
HOSTILE = os.fsdecode("--a\nforged\r\x1b[31m\x1b]0;\u202e\x9b[red]<&>\ufffe".encode().replace(b";", b"") + b"\xff")
COMM = "--\x1b[2m\nx"
LABEL = "\x1b[1m\n[red]<&>"


@pytest.fixture
def hostile(bench: Bench) -> Bench:
    """An ext4 with a hostile label, everything about it with a hostile name."""
    bench.image, bench.live, bench.snap = (bench.path / f"{HOSTILE}.{end}" for end in ("img", "live", "snap"))
    bench.image.write_bytes(bytes(1 << 20))
    run("mkfs.ext4", "-q", "-L", LABEL, bench.image)
    bench.live.mkdir()
    bench.snap.mkdir()
    return bench


@pytest.fixture
def writer(hostile: Bench) -> Iterator[None]:
    """A process with a hostile name has the live file open for writing."""
    program = hostile.path / COMM
    shutil.copy("/bin/sleep", program)
    with (
        hostile.mounted(),
        hostile.live_file.open("r+b") as file,
        subprocess.Popen([program, "60"], stdout=file) as it,
    ):
        file.close()
        wait_until(lambda: Path(f"/proc/{it.pid}/comm").read_text().startswith("--"))
        try:
            yield
        finally:
            it.kill()


def assert_harmless(done: Done) -> None:
    for line in (done.out + done.err).split("\n"):
        assert line.isprintable(), line
        assert not line.startswith("forged")


def test_a_mount_and_all_that_is_asked_of_it(hostile: Bench, writer: None) -> None:
    backup = hostile.path / f"{HOSTILE}.backup"
    for words in (
        ("status",),
        ("snapshot", hostile.live),
        ("check", hostile.live),
        ("check", "--dump", hostile.live),
        ("backup", hostile.live, backup),
        ("map", hostile.live),  # a backup has waited for it
        ("verify", backup),
        ("restore", backup, f"{backup}.again"),
    ):
        done = snapfs(*words)
        assert_harmless(done)
        assert done.code in (0, 4)
        assert "\\x1b" in done.out
        assert words[0] != "snapshot" or "--\\x1b[2m\\nx" in done.out, done.out
    for words in (("umount", hostile.live), ("mount", hostile.image, hostile.live, hostile.snap)):
        done = snapfs(*words)
        assert_harmless(done)
        done.refuses(1, "\\x1b[31m")
    assert_harmless(Done(0, (hostile.default_store / "log").read_text(), ""))
    status = json.loads(snapfs("status", hostile.live, "--json").out)
    assert status["image"] == str(hostile.image)
    assert status["snapshot"]["regions"][0]["label"] == LABEL


def test_what_is_browsed(hostile: Bench) -> None:
    place = hostile.path / f"{HOSTILE}.place"
    place.mkdir()
    with hostile.mounted():
        done = snapfs("browse", hostile.live, place).ok()
        assert_harmless(done)
        assert "\\x1b[1m\\n[red]<&>" in done.out
        done = hostile.umount()
        assert_harmless(done)
        done.refuses(1, "snapfs browse --end", ".place) and try again")
        assert snapfs("browse", "--end", place).ok().err == ""


def test_why_a_mount_failed_is_one_sentence_from_the_daemon_too(hostile: Bench) -> None:
    with hostile.untouched():
        done = hostile.mount("-o", "no_such_option")
        assert_harmless(done)
        done.refuses(1, "FUSE cannot mount", "\\x1b[31m", "\\udcff")


def test_pictures_of_a_map(hostile: Bench) -> None:
    svg, png = hostile.path / "map.svg", hostile.path / "map.png"
    done = snapfs("map", hostile.image, "--svg", svg, "--png", png)
    assert (done.code, done.err) == (0, "")
    text = "".join(ElementTree.parse(svg).getroot().itertext())
    assert "\\x1b[1m\\n[red]<&>" in text
    assert "--a\\nforged\\r\\x1b[31m" in text
    Image.open(png).verify()


def test_what_is_wrong_with_a_command_line(hostile: Bench) -> None:
    for words in (("map", HOSTILE), ("limit", hostile.image, HOSTILE), (HOSTILE,), ("mount", "--cache", HOSTILE)):
        done = snapfs(*words)
        assert_harmless(done)
        assert done.code in (1, 2)
