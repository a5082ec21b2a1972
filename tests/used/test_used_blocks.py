"""Free blocks read as zeros and cost nothing, used ones are protected; without a map every block is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cut_rig import cut
from mounted import Mounted, run, snapfs, wait_until
from used_rig import BLOCK_BYTES, MIB, STALE, UsedGround, await_map, map_of, used_blocks, with_zeros_for_free

# What a mapper meets before its first line: the module that Python itself imports at the start.
BROKEN_MAPPER = """
import os, sys
if "snapfs.servers.mapper" in sys.orig_argv:
    os.write(2, b"broken for a test")
    os._exit(1)
"""
WAITING_MAPPER = """
import os, sys, time
while "snapfs.servers.mapper" in sys.orig_argv and not os.path.exists({gate!r}):
    time.sleep(0.01)
"""


@pytest.fixture
def mapper_start(ground: UsedGround, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that every Python started from here on runs first."""
    directory = ground.path / "start"
    directory.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(directory))
    return directory / "sitecustomize.py"


def overwrite(file: Path, length: int | None = None) -> None:
    """Every byte of the live view."""
    fd = os.open(file, os.O_RDWR)
    try:
        for offset in range(0, length or os.fstat(fd).st_size, MIB):
            os.pwrite(fd, os.urandom(MIB), offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def forget(file: Path) -> None:
    """Have the kernel ask for everything again."""
    fd = os.open(file, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.mark.parametrize("fstype", ["ext4", "btrfs"])
def test_free_blocks_read_as_zeros_and_used_ones_as_they_were(ground: UsedGround, fstype: str) -> None:
    image = ground.filled(fstype, 128 * MIB)
    before = image.read_bytes()
    instance = ground.mounted(image)
    snapshot = await_map(instance)
    used = used_blocks(map_of(instance.live))
    assert used.count() == snapshot["used_blocks"] == snapshot["owed_blocks"]
    shown = with_zeros_for_free(before, used)
    assert shown != before
    forget(instance.snap_file)
    assert instance.snap_file.read_bytes() == shown
    overwrite(instance.live_file)
    forget(instance.snap_file)
    assert instance.snap_file.read_bytes() == shown
    after = instance.status()["snapshot"]
    assert (after["owed_blocks"], after["preserved_blocks"]) == (0, snapshot["used_blocks"])
    assert after["changed_blocks"] == len(used)


def test_protect_all_shows_every_byte(ground: UsedGround) -> None:
    image = ground.filled("ext4", 32 * MIB)
    before = image.read_bytes()
    instance = ground.mounted(image, "--protect", "all")
    overwrite(instance.live_file)
    assert instance.snap_file.read_bytes() == before
    snapshot = instance.status()["snapshot"]
    assert (snapshot["map"], snapshot["preserved_blocks"]) == ("none", 32 * MIB // BLOCK_BYTES)


def test_new_files_in_free_space_preserve_nearly_nothing(ground: UsedGround) -> None:
    instance = ground.mounted(ground.filled("ext4", 320 * MIB))
    with ground.opened(instance.live_file) as point:
        cut(instance.live)
        await_map(instance)
        (point / "new").write_bytes(os.urandom(200 * MIB))
        run("sync", "-f", point)
        status = instance.status()
    assert status["snapshot"]["changed_blocks"] * BLOCK_BYTES > 200 * MIB
    assert status["snapshot"]["preserved_blocks"] * BLOCK_BYTES < 2 * MIB
    assert status["buffer"]["raw_bytes"] < 2 * MIB


def test_an_unknown_image_is_protected_as_a_whole(ground: UsedGround) -> None:
    instance = ground.mounted(ground.stale(8 * MIB))
    snapshot = await_map(instance)
    assert snapshot["used_blocks"] == 8 * MIB // BLOCK_BYTES
    assert [(region["kind"], region["state"]) for region in snapshot["regions"]] == [("unknown", "all-used")]
    overwrite(instance.live_file)
    assert instance.snap_file.read_bytes() == STALE * (8 * MIB)


def test_a_filesystem_that_was_not_quiet_is_protected_as_a_whole(ground: UsedGround) -> None:
    instance = ground.mounted(ground.filled("ext4", 64 * MIB))
    with ground.opened(instance.live_file) as point:
        (point / "file").write_bytes(b"new")
        cut(instance.live, "--no-freeze")
        snapshot = await_map(instance)
    (region,) = snapshot["regions"]
    assert (region["kind"], region["state"], region["free_bytes"]) == ("ext4", "all-used", 0)
    assert region["reason"] in snapfs("status", instance.live).stdout
    assert snapshot["used_blocks"] == 64 * MIB // BLOCK_BYTES


def test_every_block_is_protected_when_the_map_fails(ground: UsedGround, mapper_start: Path) -> None:
    mapper_start.write_text(BROKEN_MAPPER)
    image = ground.filled("ext4", 32 * MIB)
    before = image.read_bytes()
    instance = ground.instance(image)
    instance.expect_log("the map of used blocks failed.*broken for a test")
    instance.mount()
    snapshot = await_map(instance, "failed")
    assert snapshot["used_blocks"] == snapshot["owed_blocks"] == 32 * MIB // BLOCK_BYTES
    assert "because the map failed" in snapfs("status", instance.live).stdout
    overwrite(instance.live_file)
    assert instance.snap_file.read_bytes() == before
    assert used_blocks(map_of(instance.live)).all()


def test_what_is_written_while_the_map_is_computed_is_protected(ground: UsedGround, mapper_start: Path) -> None:
    gate = ground.path / "gate"
    mapper_start.write_text(WAITING_MAPPER.format(gate=str(gate)))
    image = ground.filled("ext4", 64 * MIB)
    before = image.read_bytes()
    instance = ground.mounted(image)
    await_map(instance, "computing")
    overwrite(instance.live_file, 32 * MIB)
    assert instance.status()["snapshot"]["preserved_blocks"] == 32 * MIB // BLOCK_BYTES
    assert "computed" in map_of(instance.live)["regions"][0]["reason"]
    gate.touch()
    snapshot = await_map(instance)
    assert snapshot["used_blocks"] < 32 * MIB // BLOCK_BYTES
    used = used_blocks(map_of(instance.live))
    forget(instance.snap_file)
    shown = instance.snap_file.read_bytes()
    blocks = [slice(no * BLOCK_BYTES, (no + 1) * BLOCK_BYTES) for no in range(len(used))]
    assert all(shown[block] == before[block] for is_used, block in zip(used, blocks, strict=True) if is_used)


def test_a_new_cut_has_a_map_of_its_own(ground: UsedGround) -> None:
    instance = ground.mounted(ground.filled("ext4", 128 * MIB))
    first = await_map(instance)["used_blocks"]
    with ground.opened(instance.live_file) as point:
        (point / "large").write_bytes(os.urandom(40 * MIB))
        cut(instance.live)
        assert 0 <= await_map(instance)["used_blocks"] - first - 40 * MIB // BLOCK_BYTES < 100
        (point / "large").unlink()
        cut(instance.live)
        assert abs(await_map(instance)["used_blocks"] - first) < 100


def state_of(instance: Mounted) -> tuple[object, ...]:
    snapshot = instance.status()["snapshot"]
    counts = ("id", "used_blocks", "owed_blocks", "preserved_blocks", "changed_blocks")
    return (*(snapshot[name] for name in counts), snapshot["regions"])


def test_a_killed_instance_keeps_its_map(ground: UsedGround, mapper_start: Path) -> None:
    instance = ground.mounted(ground.filled("ext4", 64 * MIB))
    await_map(instance)
    overwrite(instance.live_file, 16 * MIB)
    before, shown = state_of(instance), instance.snap_file.read_bytes()
    instance.kill()
    # Nothing could be computed again.
    mapper_start.write_text(BROKEN_MAPPER)
    instance.mount()
    wait_until(lambda: instance.status()["snapshot"]["map"] != "none", what="the map")
    assert instance.status()["snapshot"]["map"] == "ready"
    assert state_of(instance) == before
    overwrite(instance.live_file)
    forget(instance.snap_file)
    assert instance.snap_file.read_bytes() == shown
