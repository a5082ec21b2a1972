"""`snapfs changes`: whoever has a copy of the older snapshot gets one of the newer by what it tells."""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path

import pytest
from ground import Ground
from mounted import SNAPFS, Mounted, run, snapfs

from snapfs.rbd.stream import read_diff

MIB = 1 << 20


@pytest.fixture(scope="module")
def two(module_ground: Ground) -> Mounted:
    """An ext4: between one and two a file was deleted, one made, and one written to."""
    image = module_ground.image(64 * MIB)
    run("mkfs.ext4", "-q", image)
    instance = module_ground.mounted(image)
    root = module_ground.mount(module_ground.loop(instance.live_file))
    for name in ("goes", "stays", "changes"):
        (root / name).write_bytes(os.urandom(3 * MIB))
    instance.cut("--name", "one")
    (root / "goes").unlink()
    (root / "comes").write_bytes(os.urandom(2 * MIB))
    with (root / "changes").open("r+b") as file:
        file.write(b"something else")
    instance.cut("--name", "two")
    run("umount", root)
    return instance


def content(two: Mounted, name: str) -> bytes:
    return (two.snap / ".snapshots" / name / two.image.name).read_bytes()


def told(two: Mounted, *words: str) -> str:
    done = snapfs("changes", two.live, *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_copy_of_the_older_becomes_the_newer(two: Mounted) -> None:
    found = json.loads(told(two, "--since", "one", "--snapshot", "two"))
    copy, newer = bytearray(content(two, "one")), content(two, "two")
    for one in found["extents"]:
        start, end = one["start"], one["start"] + one["length"]
        copy[start:end] = newer[start:end] if one["kind"] == "data" else bytes(one["length"])
    assert bytes(copy) == newer
    assert {one["kind"] for one in found["extents"]} == {"data", "zeros"}
    assert 2 * MIB <= sum(one["length"] for one in found["extents"] if one["kind"] == "data") < 4 * MIB


def test_without_an_older_one_it_is_all_that_is_used(two: Mounted) -> None:
    found = json.loads(told(two, "--snapshot", "one"))
    assert found["since"] is None
    used = json.loads(snapfs("map", two.live, "--snapshot", "one", "--json").stdout)["extents"]
    assert [(one["start"], one["length"]) for one in found["extents"]] == [
        (one["start"], one["length"]) for one in used if one["data"]
    ]


def test_the_map_for_borg_covers_the_image(two: Mounted) -> None:
    lines = [line.split() for line in told(two, "--since", "one", "--format", "borg").splitlines()]
    ranges = [(int(start), int(length), state) for start, length, state in lines]
    assert [start for start, _, _ in ranges] == [0, *(start + length for start, length, _ in ranges)][:-1]
    assert sum(length for _, length, _ in ranges) == 64 * MIB
    older, newer = content(two, "one"), content(two, "two")
    for start, length, state in ranges:
        there = newer[start : start + length]
        assert state == "data" or there == (bytes(length) if state == "zero" else older[start : start + length])
    assert {state for _, _, state in ranges} == {"data", "zero", "same"}


def test_a_domain_has_the_data_as_finished(two: Mounted) -> None:
    lines = [line.split() for line in told(two, "--since", "one", "--format", "domain").splitlines()[4:]]
    found = json.loads(told(two, "--since", "one"))["extents"]
    assert [int(start, 16) for start, _, status in lines if status == "+"] == [
        one["start"] for one in found if one["kind"] == "data"
    ]


def test_a_diff_for_rbd_has_the_data(two: Mounted, tmp_path: Path) -> None:
    with (tmp_path / "diff").open("wb") as file:
        words = ("changes", two.live, "--since", "one", "--snapshot", "two", "--format", "rbd", "-q")
        subprocess.run([SNAPFS, *words], stdout=file, check=True, timeout=60)
    data = (tmp_path / "diff").read_bytes()
    assert data.startswith(b"rbd diff v1\nf\3\0\0\0onet\3\0\0\0two")
    copy = bytearray(content(two, "one"))

    def write(view: memoryview, offset: int) -> None:
        copy[offset : offset + len(view)] = view

    read_diff(io.BytesIO(data).read, write, lambda offset, length: write(memoryview(bytes(length)), offset))
    assert bytes(copy) == content(two, "two")
    assert len(data) < 5 * MIB


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--since", "two", "--snapshot", "one"), 2, "is older than"),
        (("--since", "none"), 1, "has no snapshot none"),
        (("--format", "none"), 2, "none"),
    ],
)
def test_what_cannot_be_is_refused(two: Mounted, words: tuple[str, ...], code: int, sentence: str) -> None:
    done = snapfs("changes", two.live, *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
