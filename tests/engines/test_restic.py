"""`snapfs backup LIVE restic:REPOSITORY` and the way back: what restic reads, keeps, and says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from chunk_rig import MIB, write
from ground import Ground
from mounted import SNAPFS, Mounted, run, snapfs

import snapfs as package

IMAGE_BYTES = 40 * MIB - 5000
CHUNK_COUNT = 10


@pytest.fixture
def repository(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> str:
    """One for restic of this test."""
    home = ground.path / "home"
    for name, value in {"HOME": home, "XDG_CACHE_HOME": home / "cache", "RESTIC_PASSWORD": "secret"}.items():
        monkeypatch.setenv(name, str(value))
    place = ground.path / "repository"
    run("restic", "-r", place, "init")
    return f"restic:{place}"


@pytest.fixture
def instance(ground: Ground) -> Mounted:
    return ground.mounted(ground.image(os.urandom(IMAGE_BYTES)), "--store", ground.path / "store")


def backed_up(instance: Mounted, repository: str, *words: str) -> dict[str, Any]:
    done = snapfs("backup", instance.live, repository, "--json", *words)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check_json(kind: str, found: dict[str, Any]) -> None:
    schema = json.loads((Path(package.__file__).parent / "output.schema.json").read_text())
    jsonschema.validate(found, {**schema, "$ref": f"#/$defs/{kind}"}, cls=jsonschema.Draft202012Validator)


def counts(made: dict[str, Any]) -> tuple[int, int, int]:
    return made["files_new"], made["files_changed"], made["files_unmodified"]


def snapshots(repository: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("restic", "-r", place_of(repository), "snapshots", "--json"))
    return found


def place_of(repository: str) -> str:
    return repository.removeprefix("restic:")


def restored(ground: Ground, name: str, *words: str) -> bytes:
    image = ground.path / "restored"
    done = snapfs("restore", name, image, *words)
    assert done.returncode == 0, done.stderr
    return image.read_bytes()


def refused(*words: str | Path, code: int = 1) -> str:
    done = snapfs(*words)
    assert (done.returncode, done.stdout) == (code, "")
    return done.stderr


def replace_restic(ground: Ground, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """What is found as restic from now on."""
    tools = ground.path / "tools"
    tools.mkdir()
    (tools / "restic").write_text(f"#!/bin/sh\n{script}")
    (tools / "restic").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")


def test_what_has_changed_alone_is_read_and_all_comes_back(
    ground: Ground, instance: Mounted, repository: str
) -> None:
    nights = []
    for changed in (None, 5 * MIB, 21 * MIB, None):
        if changed is not None:
            write(instance, changed, os.urandom(8192))
        made = backed_up(instance, repository, "--cut")
        nights.append((made, instance.live_file.read_bytes()))
    full, second, third, unchanged = [counts(made) for made, _ in nights]
    assert (full, unchanged) == ((CHUNK_COUNT, 0, 0), (0, 0, CHUNK_COUNT))
    assert second == third == (0, 1, CHUNK_COUNT - 1)
    assert nights[1][0]["added_bytes"] < 8 * MIB
    for made, content in nights:
        assert restored(ground, made["backup"], "--force") == content
    assert restored(ground, repository, "--force") == nights[-1][1]


def test_a_snapshot_there_says_of_which_cut_it_is(instance: Mounted, repository: str) -> None:
    made = backed_up(instance, repository, "--cut")
    check_json("backup", made)
    (one,) = snapshots(repository)
    assert one["tags"] == ["snapfs", f"image:{instance.image}", f"cut:{made['cut']['id']}"]
    assert one["paths"] == [str(instance.snap / ".chunks" / "newest")]
    when = subprocess.run(["date", "-u", "-d", one["time"], "+%FT%TZ"], capture_output=True, text=True, check=True)
    assert when.stdout.strip() == made["cut"]["taken_at"]


def test_with_cut_all_of_it_is_released(instance: Mounted, repository: str) -> None:
    backed_up(instance, repository, "--cut")
    facts = instance.status()["snapshot"]
    assert (facts["owed_blocks"], facts["released_blocks"] > 0) == (0, True)


def test_one_with_a_name_goes_on_over_the_next_cut(ground: Ground, instance: Mounted, repository: str) -> None:
    instance.cut("--name", "nightly")
    content = instance.live_file.read_bytes()
    write(instance, 0, os.urandom(8192))
    instance.cut()
    made = backed_up(instance, repository, "--snapshot", "nightly")
    assert restored(ground, made["backup"]) == content


def test_another_cut_meanwhile_leaves_no_backup(
    ground: Ground, instance: Mounted, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes when restic has read all, and restic does not notice."""
    replace_restic(
        ground,
        monkeypatch,
        f'/usr/bin/restic "$@" || exit\n[ "$1" != backup ] || {SNAPFS} snapshot -q {instance.live} >&2\n',
    )
    said = refused("backup", "--cut", instance.live, repository)
    assert "A newer cut has replaced the snapshot" in said
    assert snapshots(repository) == []


def test_without_a_repository_no_cut_is_taken(ground: Ground, instance: Mounted, repository: str) -> None:
    before = instance.status()["snapshot"]["id"]
    said = refused("backup", "--cut", instance.live, f"restic:{ground.path}/none")
    assert said.startswith(f"snapfs: restic:{ground.path}/none cannot be opened: unable to open config file: ")
    assert said.count("\n") == 1
    assert instance.status()["snapshot"]["id"] == before


def test_its_place_may_be_in_the_environment(
    ground: Ground, instance: Mounted, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESTIC_REPOSITORY", place_of(repository))
    made = backed_up(instance, "restic:")
    assert made["backup"].startswith("restic:@")
    check_json("restore", json.loads(snapfs("restore", "restic:", ground.path / "first", "--json").stdout))
    assert restored(ground, "restic:") == instance.snap_file.read_bytes()


def test_of_several_images_one_has_to_be_named(ground: Ground, instance: Mounted, repository: str) -> None:
    other = ground.mounted(ground.image(os.urandom(6 * MIB), "other.img"), name="other")
    first = backed_up(instance, repository)
    backed_up(other, repository)
    said = refused("restore", repository, ground.path / "restored", code=2)
    assert f"has backups of several images ({instance.image} of " in said
    assert restored(ground, first["backup"]) == instance.snap_file.read_bytes()


def test_an_image_that_is_there_is_asked_for_first(ground: Ground, instance: Mounted, repository: str) -> None:
    backed_up(instance, repository)
    image = ground.image(IMAGE_BYTES, "there.img")
    assert "--force" in refused("restore", repository, image, code=2)
    assert image.read_bytes() == bytes(IMAGE_BYTES)
    short = ground.image(MIB, "short.img")
    assert "name an image of that size, or a new one." in refused("restore", repository, short, "--force")


def test_what_restic_cannot_read_leaves_no_image(ground: Ground, instance: Mounted, repository: str) -> None:
    made = backed_up(instance, repository)
    packs = sorted(Path(place_of(repository), "data").rglob("*"), key=lambda path: path.stat().st_size)
    with packs[-1].open("r+b") as file:
        file.write(bytes(8192))
    said = refused("restore", made["backup"], ground.path / "restored")
    assert " cannot be read: " in said
    assert not [name for name in os.listdir(ground.path) if name.startswith("restored")]


def test_an_interrupted_restore_leaves_no_image_and_no_lock(
    ground: Ground, instance: Mounted, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backed_up(instance, repository)
    slow = 'exec /usr/bin/restic --limit-download 4000 "$@"\n'
    replace_restic(ground, monkeypatch, f'[ "$1" = dump ] || exec /usr/bin/restic "$@"\n{slow}')
    words = [SNAPFS, "restore", repository, ground.path / "restored", "--progress", "json"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith('{"phase": "restore"')
        process.send_signal(signal.SIGINT)
        said = [line for line in process.stderr if not line.startswith("{")]
        assert process.wait(20) == 130
    assert said == ["snapfs: Interrupted; nothing is left behind.\n"]
    assert not [name for name in os.listdir(ground.path) if name.startswith("restored")]
    assert run("restic", "-r", place_of(repository), "list", "locks") == ""


@pytest.mark.parametrize("option", ["--compress", "--resume", "--verify", "--full", "--rate=1M", "--format=raw"])
def test_options_that_mean_nothing_there(instance: Mounted, repository: str, option: str) -> None:
    said = refused("backup", instance.live, repository, option, code=2)
    assert f"{option.partition('=')[0]} means nothing to {repository}; leave it out." in said
