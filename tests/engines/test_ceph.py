"""Backups in a Ceph pool: each is a snapshot there, only what has changed is sent, and each comes back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ceph_cluster import Cluster
from ground import Ground
from mounted import SNAPFS, Mounted, run, wait_until

MIB = 1 << 20
IMAGE_BYTES = 64 * MIB


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="ceph-", dir="/var/tmp") as directory:
        cluster = Cluster(Path(directory))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@dataclass
class Nights:
    """An ext4 in a live view, mounted on `root`, and the image in the pool that has its backups."""

    ground: Ground
    cluster: Cluster
    instance: Mounted
    device: Path
    root: Path
    spec: str

    def snapfs(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [SNAPFS, *words], env=self.cluster.environment, capture_output=True, text=True, check=False, timeout=120
        )

    def back_up(self, *words: str) -> dict[str, Any]:
        run("sync", "-f", self.root)
        done = self.snapfs("backup", self.instance.live, f"rbd:{self.spec}", "--json", *words)
        assert done.returncode == 0, done.stderr
        made: dict[str, Any] = json.loads(done.stdout)
        return made

    def restored(self, backup: str, *words: str) -> bytes:
        path = self.ground.path / "restored.img"
        done = self.snapfs("restore", backup, path, *words)
        assert done.returncode == 0, done.stderr
        return path.read_bytes()

    def snapshots(self) -> list[str]:
        found = json.loads(self.cluster.run("rbd", "snap", "ls", "--format", "json", self.spec))
        return [one["name"] for one in found]


@pytest.fixture
def nights(ground: Ground, cluster: Cluster, request: pytest.FixtureRequest) -> Nights:
    image = ground.image(IMAGE_BYTES)
    run("mkfs.ext4", "-q", image)
    instance = ground.mounted(image, "--store", ground.path / "store")
    device = ground.loop(instance.live_file)
    root = ground.mount(device)
    (root / "first").write_bytes(os.urandom(8 * MIB))
    return Nights(ground, cluster, instance, device, root, f"rbd/{request.node.name}")


def test_each_night_comes_back(nights: Nights) -> None:
    made, images = [], []
    for number in range(4):
        cut = ("--snapshot", f"night{number}")
        assert nights.snapfs("snapshot", nights.instance.live, "--name", cut[1]).returncode == 0
        made.append(nights.back_up(*cut))
        images.append((nights.instance.snap / ".snapshots" / cut[1] / nights.instance.image.name).read_bytes())
        (nights.root / f"more{number}").write_bytes(os.urandom(MIB))
        (nights.root / "first").unlink(missing_ok=True)
    assert made[0]["data_bytes"] > 8 * MIB
    assert all(0 < one["data_bytes"] < 4 * MIB for one in made[1:])
    assert [one["why"] for one in made] == ["it is the first", "", "", ""]
    for one, image in zip(made, images, strict=True):
        assert nights.restored(one["backup"], "--force") == image
    assert nights.restored(f"rbd:{nights.spec}", "--force") == images[-1]


def test_the_nightly_job_leaves_nothing_owed(nights: Nights) -> None:
    nights.back_up("--cut")
    (nights.root / "second").write_bytes(os.urandom(MIB))
    made = nights.back_up("--cut")
    assert made["why"] == ""
    assert nights.instance.status()["buffer"]["stored_bytes"] < MIB
    restored = nights.ground.path / "restored.img"
    nights.restored(made["backup"])
    run("e2fsck", "-fn", restored)
    content = (nights.root / "second").read_bytes()
    then = nights.ground.mount(nights.ground.loop(restored, "--read-only"), "-o", "ro,noload", name="then")
    assert (then / "second").read_bytes() == content


def test_after_a_checkpoint_is_gone_everything_is_sent(nights: Nights) -> None:
    nights.back_up("--cut")
    run("umount", nights.root)
    nights.ground.drop_loop(nights.device)
    nights.instance.umount()
    run("rm", "-r", nights.ground.path / "store")
    nights.instance.mount()
    made = json.loads(nights.snapfs("backup", nights.instance.live, f"rbd:{nights.spec}", "--json").stdout)
    assert "not known" in made["why"]
    assert nights.restored(made["backup"]) == nights.instance.snap_file.read_bytes()


def test_a_killed_one_is_undone_by_the_next(nights: Nights) -> None:
    nights.back_up("--cut")
    (nights.root / "second").write_bytes(os.urandom(12 * MIB))
    words = ("backup", "--cut", nights.instance.live, f"rbd:{nights.spec}", "--rate", "4M")
    run("sync", "-f", nights.root)
    process = subprocess.Popen([SNAPFS, *words], env=nights.cluster.environment, stderr=subprocess.DEVNULL)
    changed = ("rbd", "diff", "--format", "json", "--from-snap", nights.snapshots()[0], nights.spec)
    wait_until(lambda: json.loads(nights.cluster.run(*changed)), 60, "the first bytes")
    process.send_signal(signal.SIGKILL)
    process.wait()
    (nights.root / "second").unlink()
    assert len(nights.snapshots()) == 1
    made = nights.back_up("--cut")
    assert len(nights.snapshots()) == 2
    nights.restored(made["backup"])
    run("e2fsck", "-fn", nights.ground.path / "restored.img")


def test_an_image_of_others_is_left_alone(nights: Nights) -> None:
    nights.cluster.run("rbd", "create", "--size", "64M", nights.spec)
    done = nights.snapfs("backup", "--cut", nights.instance.live, f"rbd:{nights.spec}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "holds no backups of snapfs" in done.stderr
    assert nights.snapshots() == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("restore", "rbd:rbd/none", "to.img"), "There is no rbd:rbd/none"),
        (("restore", "rbd:none/none", "to.img"), "There is no rbd:none/none"),
        (("restore", "rbd:none", "to.img"), "names no image in a pool"),
        (("backup", "live", "rbd:rbd/one@snap"), "leave out @snap"),
        (("backup", "live", "rbd:rbd/one", "--compress"), "means nothing to"),
    ],
)
def test_what_cannot_be_is_refused(cluster: Cluster, tmp_path: Path, words: tuple[str, ...], sentence: str) -> None:
    done = subprocess.run(
        [SNAPFS, *words], env=cluster.environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode in (1, 2)
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
