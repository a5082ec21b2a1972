"""Backups that go: what stays is as it was, wherever a prune is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

from nightly_rig import ROOT, Nights, run, snapfs
from prune_rig import MOST, PRUNE, chain_of, check, killed_at, prune, several, silent

from snapfs.backups.proving import prove
from snapfs.backups.pruning import Pruner


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


def test_a_backup_after_a_killed_prune_is_as_good(nights: Nights) -> None:
    several(nights, 3)
    assert killed_at(8, nights)
    image = nights.change(30)
    nights.back_up()
    assert nights.restored() == image
    prune(nights, "--keep-last", "1")
    check(nights, [image])
    assert nights.debris() == set()


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
