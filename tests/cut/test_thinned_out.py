"""Snapshots that go by rules: which of them, what others see of it, and what is only said."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from cut_rig import MIB, CutGround, cut, snapfs
from mounted import Mounted

from snapfs.commands import snapshots
from snapfs.commands.snapshots import thin_out
from snapfs.retention import Keep


@pytest.fixture
def instance(ground: CutGround) -> Mounted:
    return ground.mounted(ground.image(os.urandom(4 * MIB)), "--protect", "all")


def names(instance: Mounted) -> list[str]:
    return [one["name"] for one in instance.status()["snapshots"]]


def take(instance: Mounted, *which: str) -> None:
    for name in which:
        cut(instance.live, "--name", name)


def write(instance: Mounted) -> None:
    with instance.live_file.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), os.urandom(MIB), 0)
        os.fsync(file.fileno())


def deleted(instance: Mounted, *options: str) -> dict[str, Any]:
    """What the command says of it, which must succeed."""
    done = snapfs("delete", instance.live, *options, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def reasons(found: dict[str, Any]) -> dict[str, list[str]]:
    return {one["name"]: one["reasons"] for one in found["kept"]}


def test_all_but_the_last_go_and_those_read_as_before(instance: Mounted) -> None:
    contents = {}
    for name in "abcd":
        take(instance, name)
        contents[name] = instance.live_file.read_bytes()
        write(instance)
    cut(instance.live)
    found = deleted(instance, "--keep-last", "2")
    assert (found["deleted"], reasons(found)) == (["a", "b"], {"c": ["last"], "d": ["last"], "": ["no name"]})
    assert names(instance) == ["c", "d", ""]
    for name in "cd":
        file = instance.snap / ".snapshots" / name / instance.image.name
        assert file.read_bytes() == contents[name]


def test_the_newest_stays_and_counts(instance: Mounted) -> None:
    take(instance, "a", "b", "c")
    deleted(instance, "--keep-last", "1")
    assert names(instance) == ["c"]
    assert instance.snap_file.read_bytes() == instance.live_file.read_bytes()


def test_each_rule_is_on_its_own(instance: Mounted) -> None:
    take(instance, "a", "b", "c", "d")
    found = deleted(instance, "--keep-last", "2", "--keep-yearly", "3")
    assert reasons(found) == {"a": ["oldest yearly"], "c": ["last"], "d": ["last", "yearly"]}
    assert names(instance) == ["a", "c", "d"]


def test_only_what_matches_goes(instance: Mounted) -> None:
    take(instance, "hourly-1", "before-upgrade", "hourly-2", "hourly-3", "mine")
    found = deleted(instance, "--keep-last", "1", "--match", "hourly-*")
    assert found["deleted"] == ["hourly-1", "hourly-2"]
    assert names(instance) == ["before-upgrade", "hourly-3", "mine"]


def test_a_second_time_there_is_nothing_to_delete(instance: Mounted) -> None:
    take(instance, "a", "b")
    deleted(instance, "--keep-last", "1")
    done = snapfs("delete", instance.live, "--keep-last", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "nothing was to be deleted\n", "")


def test_a_dry_run_changes_nothing_and_says_why(instance: Mounted) -> None:
    take(instance, "a", "b")
    cut(instance.live)
    done = snapfs("delete", instance.live, "--keep-last", "1", "--keep-daily", "1", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    taken_at = [one["taken_at"] for one in instance.status()["snapshots"]]
    assert done.stdout.splitlines() == [
        f"{'a':<24} {taken_at[0]}  would be deleted",
        f"{'b':<24} {taken_at[1]}  stays: last, daily",
        f"{'-':<24} {taken_at[2]}  stays: no name",
    ]
    assert names(instance) == ["a", "b", ""]


def test_a_dry_run_by_names_changes_nothing(instance: Mounted) -> None:
    take(instance, "a", "b", "c")
    found = deleted(instance, "a", instance.status()["snapshots"][1]["id"], "--dry-run")
    assert (found["dry_run"], found["deleted"], reasons(found)) == (True, ["a", "b"], {"c": ["not asked for"]})
    assert names(instance) == ["a", "b", "c"]


def test_one_named_twice_is_deleted_once(instance: Mounted) -> None:
    take(instance, "a", "b")
    assert deleted(instance, "a", "a", instance.status()["snapshots"][0]["id"])["deleted"] == ["a"]


class Meanwhile:
    """In the place of `read_status`: has something happen once the command has looked for the first time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
        self._words, self._read_status = words, snapshots.read_status
        monkeypatch.setattr(snapshots, "read_status", self)

    def __call__(self, store: Path) -> dict[str, Any]:
        found = self._read_status(store)
        if self._words:
            words, self._words = self._words, ()
            assert snapfs(*words).returncode == 0
        return found


def test_one_that_is_taken_meanwhile_neither_goes_nor_counts(
    instance: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(instance, "a", "b")
    Meanwhile(monkeypatch, "snapshot", instance.live, "--name", "c")
    thin_out(instance.live, Keep(last=1))
    assert names(instance) == ["b", "c"]


def test_one_that_somebody_else_deletes_meanwhile_is_no_error(
    instance: Mounted, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(instance, "a", "b", "c", "d")
    Meanwhile(monkeypatch, "delete", instance.live, "b")
    thin_out(instance.live, Keep(last=1))
    assert names(instance) == ["d"]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ((), "Nothing says which snapshots are to be deleted; give names"),
        (("--dry-run",), "Nothing says which snapshots are to be deleted; give names"),
        (("a", "--keep-last", "1"), "give it or names, not both"),
        (("--match", "a*"), "--match alone says nothing of what to keep"),
        (("a", "--match", "a*"), "--match alone says nothing of what to keep"),
        (("--keep-daily", "0"), "--keep-daily cannot be 0"),
        (("--keep-daily", "7", "--keep-last", "-1"), "--keep-last cannot be -1"),
        (("--keep-last", "all"), "'all' is not a valid integer"),
    ],
)
def test_what_says_too_little_or_too_much_is_wrong_usage(tmp_path: Path, words: tuple[str, ...], what: str) -> None:
    done = snapfs("delete", tmp_path, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert what in done.stderr
