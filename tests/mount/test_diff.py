"""`snapfs diff`: what was written since the snapshot, through the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from ground import Ground
from mounted import Mounted, snapfs

BLOCK_BYTES = 4096
MIB = 1 << 20


@pytest.fixture(scope="module")
def written(module_ground: Ground) -> Mounted:
    """Three pieces of the live view were written to, one of them twice, and one at the end of the image."""
    instance = module_ground.mounted(module_ground.image(4 * MIB + 512))
    fd = os.open(instance.live_file, os.O_WRONLY)
    for offset, length in ((BLOCK_BYTES + 5, 10), (MIB, 3 * BLOCK_BYTES), (MIB, BLOCK_BYTES), (4 * MIB, 512)):
        os.pwrite(fd, bytes(length), offset)
    os.close(fd)
    return instance


def test_whole_blocks_in_order(written: Mounted) -> None:
    found = json.loads(snapfs("diff", written.live, "--json").stdout)
    assert [(one["start"], one["length"]) for one in found["extents"]] == [
        (BLOCK_BYTES, BLOCK_BYTES),
        (MIB, 3 * BLOCK_BYTES),
        (4 * MIB, 512),
    ]
    assert found["changed_bytes"] == 4 * BLOCK_BYTES + 512
    assert found["id"] == written.status()["snapshot"]["id"]


def test_for_people(written: Mounted) -> None:
    lines = snapfs("diff", written.live).stdout.splitlines()
    assert lines[0].startswith("16.5 KiB of 4 MiB written since 20")
    assert [line.split() for line in lines[1:]] == [["4096", "4096"], ["1048576", "12288"], ["4194304", "512"]]


def test_a_domain_map_has_them_as_finished(written: Mounted, tmp_path: Path) -> None:
    done = snapfs("diff", written.live, "--domain", tmp_path / "domain")
    assert (done.returncode, done.stdout) == (0, "")
    lines = [line.split() for line in (tmp_path / "domain").read_text().splitlines()[4:]]
    assert [int(start, 16) for start, _, status in lines if status == "+"] == [BLOCK_BYTES, MIB, 4 * MIB]


def test_after_a_new_cut_nothing_has_changed(ground: Ground) -> None:
    instance = ground.mounted(ground.image(MIB))
    instance.live_file.write_bytes(b"x" * BLOCK_BYTES)
    assert snapfs("snapshot", instance.live).returncode == 0
    assert json.loads(snapfs("diff", instance.live, "--json").stdout)["extents"] == []


def test_of_a_lost_snapshot_nobody_knows(ground: Ground) -> None:
    instance = ground.mounted(ground.image(os.urandom(MIB)), "--buffer-limit", "4K")
    instance.expect_log("side buffer")
    instance.live_file.write_bytes(b"x" * MIB)
    done = snapfs("diff", instance.live)
    assert done.returncode == 3
    assert "the snapshot, because that was lost meanwhile (overflowed); take a new one." in done.stderr


def test_of_an_image_that_is_not_mounted(ground: Ground) -> None:
    done = snapfs("diff", ground.image(MIB))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
