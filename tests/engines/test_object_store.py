"""restic and rclone into an object store: what is sent is about what has changed, and all of it comes back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from chunk_rig import MIB, folder, joined, write
from ground import Ground
from mounted import Mounted, run, snapfs
from s3_server import s3_server

IMAGE_BYTES = 24 * MIB


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def instance(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> Mounted:
    """And an environment in which its backups are made."""
    home = ground.path / "home"
    variables = {"HOME": home, "XDG_CACHE_HOME": home / "cache", "RESTIC_PASSWORD": "secret"}
    for name, value in {**variables, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    return ground.mounted(ground.image(os.urandom(IMAGE_BYTES)), "--store", ground.path / "store")


def test_restic_in_an_object_store(ground: Ground, instance: Mounted, url: str) -> None:
    repository = f"restic:s3:{url}/vault"
    run("restic", "-r", repository.removeprefix("restic:"), "init")
    for number in range(4):
        if number:
            write(instance, number * 5 * MIB, os.urandom(8192))
        done = snapfs("backup", "--cut", instance.live, repository, "--json")
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        assert made["files_new"] + made["files_changed"] == (1 if number else 6)
        content = instance.live_file.read_bytes()
        done = snapfs("restore", made["backup"], ground.path / "restored", "--force")
        assert done.returncode == 0, done.stderr
        assert (ground.path / "restored").read_bytes() == content


def test_rclone_in_an_object_store(ground: Ground, instance: Mounted, url: str) -> None:
    """Of an object it knows the time only from what it has noted there itself."""

    def rclone(*words: str | Path) -> str:
        options = ["--config", "/dev/null", "--s3-provider", "Other", "--s3-endpoint", url, "--s3-env-auth"]
        return run("rclone", *options, *words)

    remote, copied = ":s3:mirror/vm1", []
    for number in range(3):
        if number:
            write(instance, number * 5 * MIB, os.urandom(8192))
            instance.cut()
        log = ground.path / f"log{number}"
        rclone("sync", folder(instance), remote, "--use-json-log", "-v", "--stats", "0", "--log-file", log)
        copied.append(log.read_text().count('"msg":"Copied'))
    assert copied == [6, 1, 1]
    rclone("copy", remote, ground.path / "back")
    assert joined(ground.path / "back") == instance.snap_file.read_bytes()
