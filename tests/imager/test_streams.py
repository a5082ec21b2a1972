"""Restoring from the standard input: a raw stream, or zstd, with and without a manifest."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from imager_rig import MIB, Bench, Done, names_in, run, snapfs

from tests.cli.command_line import SNAPFS, TIMEOUT_S


def fed(content: bytes, *words: str | Path) -> Done:
    """`snapfs WORDS` with that in its standard input, a pipe."""
    command = [os.fspath(SNAPFS), *map(os.fspath, words)]
    done = subprocess.run(command, input=content, capture_output=True, timeout=TIMEOUT_S)
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


def sent(bench: Bench, *words: str) -> bytes:
    """What `snapfs backup IMAGE -` writes; its manifest is m.json."""
    command = [os.fspath(SNAPFS), "backup", os.fspath(bench.image), "-", "--manifest", "m.json", "--force", *words]
    return subprocess.run(command, cwd=bench.path, check=True, capture_output=True, timeout=TIMEOUT_S).stdout


def zstd(content: bytes, *words: str) -> bytes:
    return subprocess.run(["zstd", "-q", "-c", *words], input=content, check=True, capture_output=True).stdout


@pytest.mark.parametrize("words", [(), ("--compress", "zstd")], ids=" ".join)
def test_a_stream_is_restored_and_compared_with_its_manifest(bench: Bench, words: tuple[str, ...]) -> None:
    stream = sent(bench, *words)
    fed(stream, "restore", "-", bench.path / "back", "--manifest", bench.path / "m.json", "--verify").ok()
    run("e2fsck", "-fn", bench.path / "back")
    fed(stream, "restore", "-", bench.path / "plain").ok()
    run("cmp", bench.path / "back", bench.path / "plain")
    assert (bench.path / "plain").stat().st_blocks * 512 < 50 * MIB


def test_a_stream_of_zstd_is_one_frame_with_size_and_checksum(small: Bench) -> None:
    stream = sent(small, "--compress", "zstd")
    assert subprocess.run(["zstd", "-q", "-d", "-c"], input=stream, check=True, capture_output=True).stdout == (
        small.image.read_bytes()
    )
    (small.path / "stream.zst").write_bytes(stream)
    text = run("zstd", "-l", "-v", small.path / "stream.zst")
    assert "Check: XXH64" in text
    assert "# Zstandard Frames: 1" in text
    assert f"({2 * MIB} B)" in text


def test_frames_of_others_are_read(small: Bench) -> None:
    content = small.image.read_bytes()
    nothing = b"\x5a\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    half = len(content) // 2 + 1
    stream = zstd(content[:100]) + nothing + zstd(content[100:half], "--no-check") + zstd(content[half:], "-19")
    fed(stream, "restore", "-", small.path / "back").ok()
    assert (small.path / "back").read_bytes() == content


NOTHING = b"\x50\x2a\x4d\x18"


def test_a_stream_may_begin_with_a_frame_that_holds_something_else(small: Bench) -> None:
    """That of pzstd does."""
    content = small.image.read_bytes()
    fed(NOTHING + (4).to_bytes(4, "little") + b"size" + zstd(content), "restore", "-", small.path / "back").ok()
    assert (small.path / "back").read_bytes() == content


def test_a_frame_that_holds_something_else_takes_no_memory(small: Bench) -> None:
    head = NOTHING + ((1 << 32) - 1).to_bytes(4, "little")
    command = ["prlimit", f"--as={900 << 20}", os.fspath(SNAPFS), "restore", "-", os.fspath(small.path / "back")]
    done = subprocess.run(command, input=head + b"a few", capture_output=True, timeout=TIMEOUT_S)
    Done(done.returncode, "", done.stderr.decode()).refuses(3, "in the middle")


def test_little_that_stands_for_much_is_read_in_small_pieces(small: Bench) -> None:
    size_bytes = 1 << 30
    stream = zstd(bytes(size_bytes))
    assert len(stream) < MIB
    limit = ("prlimit", f"--as={900 << 20}")
    command = [*limit, os.fspath(SNAPFS), "restore", "-", os.fspath(small.path / "back")]
    subprocess.run(command, input=stream, check=True, capture_output=True, timeout=TIMEOUT_S)
    assert (small.path / "back").stat().st_size == size_bytes
    assert (small.path / "back").stat().st_blocks == 0


@pytest.mark.parametrize("words", [(), ("--compress", "zstd")], ids=" ".join)
def test_a_stream_that_ends_early_gives_no_image(small: Bench, words: tuple[str, ...]) -> None:
    stream = sent(small, *words)
    before = names_in(small.path)
    for end in (3, len(stream) - 1):
        fed(stream[:end], "restore", "-", small.path / "back", "--manifest", small.path / "m.json").refuses(3, "ends")
    assert names_in(small.path) == before


def test_a_frame_that_is_cut_short_is_known_without_a_manifest(small: Bench) -> None:
    stream = sent(small, "--compress", "zstd")
    for end in (5, len(stream) - 1):
        fed(stream[:end], "restore", "-", small.path / "back").refuses(3, "in the middle")


@pytest.mark.parametrize("words", [(), ("--compress", "zstd")], ids=" ".join)
def test_a_damaged_stream_gives_no_image(small: Bench, words: tuple[str, ...]) -> None:
    stream = bytearray(sent(small, *words))
    stream[MIB] ^= 4
    before = names_in(small.path)
    done = fed(bytes(stream), "restore", "-", small.path / "back", "--manifest", small.path / "m.json")
    done.refuses(3, "The standard input is damaged")
    assert names_in(small.path) == before


@pytest.mark.parametrize("words", [(), ("--compress", "zstd")], ids=" ".join)
def test_a_stream_that_goes_on_is_refused(small: Bench, words: tuple[str, ...]) -> None:
    stream = sent(small, *words) + b"more"
    fed(stream, "restore", "-", small.path / "back", "--manifest", small.path / "m.json").refuses(3, "behind")


def test_without_a_manifest_an_image_that_is_there_has_the_size_of_the_stream(small: Bench) -> None:
    stream = sent(small)
    target = small.path / "target"
    for size_bytes, word in ((MIB, "goes on behind"), (3 * MIB, "ends after")):
        target.write_bytes(bytes(size_bytes))
        done = fed(stream, "restore", "-", target, "--force")
        assert done.code == 1
        assert word in done.err
        assert "half restored" in done.err
    target.write_bytes(bytes(2 * MIB))
    fed(stream, "restore", "-", target).refuses(2, "--force")
    fed(stream, "restore", "-", target, "--force").ok()
    assert target.read_bytes() == stream


def test_what_comes_from_a_pipe_is_for_its_owner_alone(small: Bench) -> None:
    fed(sent(small), "restore", "-", small.path / "back").ok()
    assert (small.path / "back").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "words",
    [("--verify",), ("--keep-free",), ("--check-first",), ("--at", "monday")],
    ids=" ".join,
)
def test_what_a_stream_cannot_give_is_refused(small: Bench, words: tuple[str, ...]) -> None:
    fed(b"abc", "restore", "-", small.path / "back", *words).refuses(2, words[0])


def test_nothing_is_no_image(small: Bench) -> None:
    fed(b"", "restore", "-", small.path / "back").refuses(1, "Nothing came")


def test_zstd_is_for_streams_and_the_flag_alone_for_qcow2(small: Bench) -> None:
    snapfs("backup", small.image, small.path / "backup", "--compress", "zstd").refuses(2, "is for a stream")
    snapfs("backup", small.image, f"{small.path}/", "--compress", "zstd").refuses(2, "is for a stream")
    snapfs("backup", "--format", "qcow2", "--compress", small.image, small.path / "backup").ok()
