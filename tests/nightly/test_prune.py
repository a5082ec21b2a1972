"""Backups that go: what stays is as it was, and what is damaged or of others stays as well."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys

import pytest
from nightly_rig import CELL, MIB, ROOT, Nights, snapfs, with_other_bytes
from prune_rig import PRUNE, check, prune, several


@pytest.mark.parametrize("gone", [gone for count in (1, 2, 3) for gone in itertools.combinations(range(3), count)])
def test_what_stays_is_as_it_was(nights: Nights, gone: tuple[int, ...]) -> None:
    images = several(nights)
    names = [one["name"] for one in nights.listed()]
    pruned = subprocess.run(
        [sys.executable, "-c", PRUNE, str(nights.backups), *(names[number] for number in gone)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert pruned.returncode == 0, pruned.stderr
    check(nights, [image for number, image in enumerate(images) if number not in gone])
    assert nights.debris() == set()
    assert nights.listed()[0]["kind"] == "full"


def test_the_rules_say_which_stay_and_why(nights: Nights) -> None:
    images = several(nights)
    names = [one["name"] for one in nights.listed()]
    before = {path: path.stat().st_mtime_ns for path in nights.backups.iterdir()}
    told = json.loads(snapfs("prune", nights.backups, "--keep-last", "2", "--dry-run", "--json").ok().out)
    assert {path: path.stat().st_mtime_ns for path in nights.backups.iterdir()} == before
    assert told["pruned"] == names[:2]
    assert [one["reasons"] for one in told["kept"]] == [["last"], ["last"]]
    prune(nights, "--keep-last", "2")
    check(nights, images[2:])
    prune(nights, "--keep-last", "2")
    check(nights, images[2:])


def test_the_next_increment_stands_on_what_was_merged(nights: Nights) -> None:
    several(nights)
    prune(nights, "--keep-last", "1")
    image = nights.change(5)
    assert nights.back_up()["kind"] == "increment"
    assert nights.restored() == image
    snapfs("verify", nights.backups, "--all").ok()


def test_another_line_goes_whole(nights: Nights) -> None:
    several(nights, 2)
    image = nights.change(5)
    assert nights.back_up("--full")["kind"] == "full"
    prune(nights, "--keep-last", "1")
    check(nights, [image])
    assert nights.debris() == set()


def test_nothing_changes_when_the_newest_is_damaged(nights: Nights) -> None:
    several(nights, 3)
    path = nights.file(2, ".qcow2")
    with_other_bytes(path, path.stat().st_size - CELL + 10)
    before = {path.name: path.read_bytes() for path in nights.backups.iterdir()}
    snapfs("prune", nights.backups, "--keep-last", "1").refuses(3, "the newest backup is not whole")
    assert {path.name: path.read_bytes() for path in nights.backups.iterdir()} == before


def test_nothing_changes_when_what_is_merged_is_damaged(nights: Nights) -> None:
    several(nights, 4)
    snapfs("verify", nights.backups).ok()
    path = nights.file(2, ".qcow2")
    with_other_bytes(path, path.stat().st_size - CELL + 10)
    before = {path.name: path.read_bytes() for path in nights.backups.iterdir()}
    snapfs("prune", nights.backups, "--keep-last", "2").refuses(3, "is damaged")
    assert {path.name: path.read_bytes() for path in nights.backups.iterdir()} == before


def test_what_would_be_written_over_is_looked_at_before(nights: Nights) -> None:
    """Clusters that a file takes for free are where the next one is written to."""
    several(nights, 2)
    snapfs("verify", nights.backups).ok()
    file = nights.file(0, ".qcow2")
    with file.open("r+b") as opened:
        table = int.from_bytes(os.pread(opened.fileno(), 8, 48), "big")
        block = int.from_bytes(os.pread(opened.fileno(), 8, table), "big")
        os.pwrite(opened.fileno(), bytes(60), block + 2 * 10)
    before = {path.name: path.read_bytes() for path in nights.backups.iterdir()}
    snapfs("prune", nights.backups, "--keep-last", "1").refuses(3, "is damaged")
    assert {path.name: path.read_bytes() for path in nights.backups.iterdir()} == before


def test_what_has_another_name_is_not_written_to(nights: Nights) -> None:
    several(nights, 2)
    copy = nights.path / "copy"
    shutil.copytree(nights.backups, copy, copy_function=os.link)
    snapfs("prune", nights.backups, "--keep-last", "1").refuses(1, "has another name as well")
    snapfs("verify", copy, "--all").ok()
    shutil.rmtree(copy)
    prune(nights, "--keep-last", "1")


def test_damaged_facts_are_left_with_what_is_lost_by_them_and_the_others_go(nights: Nights) -> None:
    images = several(nights, 3)
    path = nights.file(2, ".json")
    facts = path.read_bytes()
    with_other_bytes(path, 40)
    for cell in (20, 30):
        images.append(nights.change(cell))
        nights.back_up()
    names = [one["name"] for one in nights.listed()]
    assert nights.listed()[3]["kind"] == "full"
    told = snapfs("prune", nights.backups, "--keep-last", "1", "--dry-run", "--json").ok()
    assert f"{names[2]} stays, in case there is another copy of {path.name}" in told.err
    assert [one["reasons"] for one in json.loads(told.out)["kept"]] == [
        ["a lost one stands on it"],
        ["lost"],
        ["last"],
    ]
    prune(nights, "--keep-last", "1")
    assert [one["name"] for one in nights.listed()] == [names[1], names[2], names[4]]
    snapfs("verify", nights.backups, "--all").refuses(3, path.name)
    path.write_bytes(facts)
    check(nights, [images[1], images[2], images[4]])
    prune(nights, "--keep-last", "1")
    check(nights, images[4:])
    assert nights.debris() == set()


def test_what_stands_on_damaged_facts_counts_for_no_rule(nights: Nights) -> None:
    images = several(nights, 3)
    with_other_bytes(nights.file(1, ".json"), 40)
    for cell in (20, 30):
        images.append(nights.change(cell))
        nights.back_up("--full")
    names = [one["name"] for one in nights.listed()]
    done = snapfs("prune", nights.backups, "--keep-last", "2").ok()
    assert f"{names[1]} and what else is lost ({names[2]}) stay" in done.err
    assert [one["name"] for one in nights.listed()] == names
    assert nights.restored("--at", names[0]) == images[0]


def test_nothing_changes_when_the_newest_is_lost_by_damaged_facts(nights: Nights) -> None:
    several(nights, 3)
    snapfs("verify", nights.backups, "--all").ok()
    with_other_bytes(nights.file(1, ".json"), 40)
    before = {path.name: path.read_bytes() for path in nights.backups.iterdir()}
    snapfs("prune", nights.backups, "--keep-last", "1").refuses(3, "the newest backup is not whole")
    assert {path.name: path.read_bytes() for path in nights.backups.iterdir()} == before


@pytest.mark.parametrize("kind", ["link", "directory", "fifo"])
def test_what_others_call_json_is_theirs(nights: Nights, kind: str) -> None:
    images = several(nights, 2)
    other = nights.backups / "other.json"
    if kind == "link":
        other.symlink_to(nights.image)
    elif kind == "directory":
        other.mkdir()
    else:
        os.mkfifo(other)
    prune(nights, "--keep-last", "1")
    assert nights.debris() == {other.name}
    check(nights, images[1:])


def test_something_has_to_stay(nights: Nights) -> None:
    snapfs("prune", nights.backups, "--keep-last", "1").refuses(2, "There is no backup")
    nights.back_up()
    snapfs("prune", nights.backups).refuses(2, "Nothing says which backups are to stay")
    snapfs("prune", nights.image, "--keep-last", "1").refuses(2, "is no directory")
    prune(nights, "--keep-last", "1")
    assert os.path.getsize(nights.file(0, ".qcow2")) > 4 * MIB
