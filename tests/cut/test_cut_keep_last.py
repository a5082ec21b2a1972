"""A cut after which older ones go: the new one counts, and is there whatever becomes of the others."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from cut_rig import MIB, CutGround, cut, finished, snapfs
from mounted import Mounted

from snapfs.commands.snapshots import thinning_out_until
from snapfs.retention import Keep


@pytest.fixture
def instance(ground: CutGround) -> Mounted:
    return ground.mounted(ground.image(os.urandom(4 * MIB)))


@pytest.fixture
def pair(ground: CutGround) -> tuple[Mounted, Mounted]:
    one, other = (ground.mounted(ground.image(4 * MIB, f"{name}.img"), name=name) for name in ("one", "other"))
    return one, other


def names(instance: Mounted) -> list[str]:
    return [one["name"] for one in instance.status()["snapshots"]]


def keeping(live: Path, name: str, *options: str) -> list[str]:
    """The names of those that went."""
    found: list[str] = cut(live, "--name", name, *options)["deleted"]
    return found


def test_the_last_ones_stay_the_new_one_among_them(instance: Mounted) -> None:
    went = [keeping(instance.live, name, "--keep-last", "2") for name in "abcd"]
    assert went == [[], [], ["a"], ["b"]]
    assert names(instance) == ["c", "d"]


def test_only_what_matches_goes(instance: Mounted) -> None:
    for name in ("hourly-1", "mine", "hourly-2"):
        cut(instance.live, "--name", name)
    assert keeping(instance.live, "hourly-3", "--keep-last", "2", "--match", "hourly-*") == ["hourly-1"]
    assert names(instance) == ["mine", "hourly-2", "hourly-3"]


def test_those_that_went_are_named(instance: Mounted) -> None:
    cut(instance.live, "--name", "a")
    done = snapfs("snapshot", instance.live, "--name", "b", "--keep-last", "1")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"{'deleted':<12} a")


def test_one_that_is_newer_neither_goes_nor_counts(instance: Mounted) -> None:
    taken = [cut(instance.live, "--name", name) for name in "abc"]
    assert list(thinning_out_until(instance.store, taken[1]["id"], Keep(last=1), "*")) == ["a"]
    assert names(instance) == ["b", "c"]


def test_of_several_images_they_go_on_each(pair: tuple[Mounted, Mounted]) -> None:
    one, other = pair
    cut(one.live, "--name", "a")
    taken = cut(other.live, one.live, "--name", "b", "--keep-last", "1")
    assert [part["deleted"] for part in taken["cuts"]] == [[], ["a"]]
    assert names(one) == names(other) == ["b"]


def test_one_whose_older_ones_cannot_be_deleted_is_taken_all_the_same(
    ground: CutGround, pair: tuple[Mounted, Mounted]
) -> None:
    one, other = pair
    for instance in pair:
        cut(instance.live, "--name", "a")
    process = ground.stopping_cut(one.live, other.live, "--name", "b", "--keep-last", "1", at="delete")
    one.expect_log("was killed by signal 9|may not be in the image")
    one.kill("live")
    code, out, err = finished(process, "\n\n")
    assert code == 4
    assert f"The snapshot of {one.image} was taken, but not all older ones that it was to replace are deleted" in err
    assert [part["deleted"] for part in _last_object(out)["cuts"]] == [[], ["a"]]
    assert names(other) == ["b"]


def test_an_interruption_does_not_leave_some_of_them(ground: CutGround, instance: Mounted) -> None:
    for name in "ab":
        cut(instance.live, "--name", name)
    process = ground.stopping_cut(instance.live, "--name", "c", "--keep-last", "1", at="delete")
    process.send_signal(signal.SIGINT)
    code, out, err = finished(process, "\n\n")
    assert (code, err, _last_object(out)["deleted"]) == (0, "", ["a", "b"])
    assert names(instance) == ["c"]


def _last_object(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("--keep-last", "2"), "give --name too"),
        (("--name", "a", "--keep-last", "0"), "--keep-last cannot be 0"),
        (("--name", "a", "--match", "a*"), "--match alone says nothing of what to keep"),
        (("--name", "a", "--keep-last", "2", "--match", "b*"), "The name a does not match b*"),
    ],
)
def test_what_does_not_fit_together_is_wrong_usage(tmp_path: Path, words: tuple[str, ...], what: str) -> None:
    done = snapfs("snapshot", tmp_path, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert what in done.stderr
