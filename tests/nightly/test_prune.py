"""Backups that go: what stays is as it was, wherever a prune ends."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from nightly_rig import CELL, MIB, ROOT, Nights, run, snapfs, with_other_bytes

from snapfs.backups.chain import Chain
from snapfs.backups.proving import prove
from snapfs.backups.pruning import Pruner

MOST = 200


def several(nights: Nights, count: int = 4) -> list[bytes]:
    """So many backups, each with other cells changed, some of them again, and some that become zeros."""
    images = [nights.image.read_bytes()]
    nights.back_up()
    for number in range(1, count):
        with nights.image.open("r+b") as file:
            file.seek((10 + number) * CELL)
            file.write(bytes(CELL))
        images.append(nights.change(number, number + 1, 9 + number, 64))
        nights.back_up()
    return images


def prune(nights: Nights, *words: str) -> None:
    snapfs("prune", nights.backups, *words).ok()


def check(nights: Nights, images: list[bytes]) -> None:
    """The backups are those, whole by every account."""
    listed = nights.listed()
    assert len(listed) == len(images)
    snapfs("verify", nights.backups, "--all").ok()
    for one, image in zip(listed, images, strict=True):
        assert nights.restored("--at", one["name"]) == image
        then = nights.path / "then.img"
        then.write_bytes(image)
        path = nights.backups / f"{one['name']}.qcow2"
        run("qemu-img", "check", "-q", path)
        run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", path, then)


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


# Any of them, as no rule chooses them.
PRUNE = """
import sys
from pathlib import Path
from snapfs.backups.chain import Chain
from snapfs.backups.pruning import Pruner
Pruner(Chain.load(Path(sys.argv[1])), lambda progress: None).prune(sys.argv[2:])
"""


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


def chain_of(nights: Nights) -> Chain:
    return Chain.load(nights.backups)


def silent(progress: object) -> None:
    """Nobody wants to know."""


def test_killed_at_every_step_what_stays_is_as_it_was(nights: Nights) -> None:
    then, kept = nights.path / "then.img", nights.path / "kept"
    then.write_bytes(several(nights, 3)[-1])
    snapfs("verify", nights.backups).ok()
    newest = chain_of(nights).entries[-1].name
    shutil.copytree(nights.backups, kept)
    for step in range(MOST):
        shutil.rmtree(nights.backups)
        shutil.copytree(kept, nights.backups)
        code = killed_at(step, nights)
        assert prove(chain_of(nights), [newest], silent).damages == [], step
        words = ("-f", "qcow2", "-F", "raw", nights.backups / f"{newest}.qcow2", then)
        run("qemu-img", "compare", "-q", *words)
        Pruner(chain_of(nights), silent).prune({entry.name for entry in chain_of(nights).entries[:-1]})
        run("qemu-img", "compare", "-q", *words)
        assert prove(chain_of(nights), [newest], silent).good == [newest]
        assert {path.suffix for path in nights.backups.iterdir()} == {".qcow2", ".cells", ".json"}
        assert len(list(nights.backups.iterdir())) == 4, step
        if code == 0:
            break
    assert code == 0


def killed_at(step: int, nights: Nights) -> int:
    """The code of a prune that leaves the newest, and is killed before this step."""
    done = snapfs("prune", nights.backups, "--keep-last", "1", die_before=step)
    assert done.code in (0, -signal.SIGKILL), done.err
    return done.code


def test_a_backup_after_a_killed_prune_is_as_good(nights: Nights) -> None:
    several(nights, 3)
    assert killed_at(8, nights)
    image = nights.change(30)
    nights.back_up()
    assert nights.restored() == image
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


def test_without_the_list_those_that_go_are_no_backups(nights: Nights) -> None:
    images = several(nights, 3)
    snapfs("verify", nights.backups).ok()
    newest = nights.listed()[-1]["name"]
    for step in range(MOST):
        assert killed_at(step, nights)
        if nights.facts(0)["name"] == newest:
            break
    (nights.backups / "chain.json").unlink()
    assert len(nights.listed()) == 1
    prune(nights, "--keep-last", "1")
    check(nights, images[-1:])


def test_what_a_prune_was_letting_go_of_when_it_was_killed_is_no_backup(nights: Nights) -> None:
    """Its facts say so before the list does."""
    images = several(nights, 3)
    snapfs("verify", nights.backups).ok()
    names = [one["name"] for one in nights.listed()]
    listed = (nights.backups / "chain.json").read_text()
    for step in range(MOST):
        assert killed_at(step, nights)
        if '"is_going": true' in (nights.backups / f"{names[0]}.json").read_text():
            break
    assert (nights.backups / "chain.json").read_text() == listed
    assert [one["name"] for one in nights.listed()] == names[1:]
    assert nights.restored("--at", names[1]) == images[1]
    prune(nights, "--keep-last", "2")
    check(nights, images[1:])
    assert nights.debris() == set()


def test_what_a_killed_prune_was_writing_goes_with_any_other(nights: Nights) -> None:
    images = several(nights, 3)
    snapfs("verify", nights.backups).ok()
    names = {one["name"] for one in nights.listed()}
    for step in range(MOST):
        assert killed_at(step, nights)
        left = {path.name for path in nights.backups.glob("*.partial")}
        if left & {f"{name}.json.partial" for name in names}:
            break
    prune(nights, "--keep-last", "3")
    check(nights, images)
    assert nights.debris() == set()


# Killed when the one above is in its file, and nothing says so yet.
HALF_MERGED = """
import os, signal, sys
from snapfs.imager.qcow2 import Qcow2Target
sync = Qcow2Target.sync
def dying(self):
    sync(self)
    os.kill(os.getpid(), signal.SIGKILL)
Qcow2Target.sync = dying
"""


def test_what_is_half_merged_is_finished_before_more_goes(nights: Nights) -> None:
    images = several(nights)
    second = nights.listed()[1]["name"]
    command = [sys.executable, "-c", HALF_MERGED + PRUNE, str(nights.backups), second]
    assert subprocess.run(command, cwd=ROOT, timeout=120, check=False).returncode == -signal.SIGKILL
    prune(nights, "--keep-last", "2")
    check(nights, images[2:])
    assert nights.debris() == set()


def test_killed_between_two_merges_what_stays_goes_on_going(nights: Nights) -> None:
    then, kept = nights.path / "then.img", nights.path / "kept"
    if os.geteuid() == 0:
        # Root's copies are their owner's, also what is left of them.
        os.chown(nights.image, 12345, 12345)
    then.write_bytes(several(nights)[-1])
    snapfs("verify", nights.backups).ok()
    entries = [entry.name for entry in chain_of(nights).entries]
    run("cp", "-a", nights.backups, kept)
    for step in range(MOST):
        shutil.rmtree(nights.backups)
        run("cp", "-a", kept, nights.backups)
        # The full one stays, so those that are merged are increments of it.
        code = killed_before(step, nights, entries[1:3])
        Pruner(chain_of(nights), silent).prune(entries[:3])
        assert prove(chain_of(nights), entries[3:], silent).good == entries[3:], step
        assert len(list(nights.backups.iterdir())) == 4, step
        assert nights.facts(0)["merged"] is None
        if code == 0:
            break
    assert code == 0
    assert nights.restored() == then.read_bytes()


def killed_before(step: int, nights: Nights, going: list[str]) -> int:
    """The code of a prune of these that is killed before this step."""
    command = [sys.executable, "-c", DYING_PRUNE + PRUNE, str(nights.backups), *going]
    steps = {**os.environ, "STEPS": str(step)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False, env=steps)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


# As `dying_backup.py`, and names that nothing else gives are its steps.
DYING_PRUNE = """
import os, signal
left = int(os.environ["STEPS"])
def dying(step):
    def taken(*words, **keywords):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return step(*words, **keywords)
    return taken
for name in ("rename", "unlink", "fchmod"):
    setattr(os, name, dying(getattr(os, name)))
"""


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
