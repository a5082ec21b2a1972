"""What has been read once is not kept: `--single-pass` and `snapfs release`."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from mounted import Mounted, run, snapfs, wait_until
from test_used_blocks import forget, overwrite
from used_rig import BLOCK_BYTES, MIB, UsedGround, await_map, map_of, used_blocks, with_zeros_for_free


def read_error(file: Path, offset: int) -> int | None:
    """The errno of a read of one block."""
    fd = os.open(file, os.O_RDONLY)
    try:
        os.pread(fd, BLOCK_BYTES, offset)
    except OSError as error:
        return error.errno
    finally:
        os.close(fd)
    return None


def stored_bytes(instance: Mounted) -> int:
    """What the store takes on the disk."""
    return sum(path.stat().st_blocks * 512 for path in instance.store.rglob("*") if path.is_file())


def test_a_single_pass_reads_everything_and_leaves_nothing_behind(ground: UsedGround) -> None:
    image = ground.filled("ext4", 256 * MIB)
    with ground.opened(image) as point:
        (point / "large").write_bytes(os.urandom(120 * MIB))
    before = image.read_bytes()
    instance = ground.mounted(image, "--single-pass")
    snapshot = await_map(instance)
    shown = with_zeros_for_free(before, used_blocks(map_of(instance.live)))
    overwrite(instance.live_file)
    wait_until(lambda: instance.status()["buffer"]["staged_bytes"] == 0, what="the compactor")
    kept_bytes = stored_bytes(instance)
    assert kept_bytes > 120 * MIB
    copy = ground.path / "copy.img"
    run("dd", f"if={instance.snap_file}", f"of={copy}", "bs=1M", "status=none")
    assert copy.read_bytes() == shown
    wait_until(
        lambda: instance.status()["snapshot"]["released_blocks"] >= snapshot["used_blocks"], what="the release"
    )
    # The ring, which gives its room back as well, is 64 MiB of it.
    wait_until(lambda: stored_bytes(instance) < kept_bytes - 120 * MIB, what="the room")
    wait_until(lambda: instance.status()["buffer"]["stored_bytes"] < MIB, what="the count of it")
    assert read_error(instance.snap_file, 0) == errno.ENODATA


def test_writes_behind_a_single_pass_cost_nothing(ground: UsedGround) -> None:
    instance = ground.mounted(ground.stale(192 * MIB), "--single-pass")
    await_map(instance)
    with instance.snap_file.open("rb") as snap:
        snap.read(192 * MIB)
    wait_until(lambda: instance.status()["snapshot"]["owed_blocks"] == 0, what="the release")
    overwrite(instance.live_file)
    assert instance.status()["buffer"]["raw_bytes"] == 0


def test_a_snapshot_can_be_read_again_without_a_single_pass(ground: UsedGround) -> None:
    instance = ground.mounted(ground.filled("ext4", 96 * MIB))
    await_map(instance)
    first = instance.snap_file.read_bytes()
    overwrite(instance.live_file)
    forget(instance.snap_file)
    assert instance.snap_file.read_bytes() == first
    assert instance.status()["snapshot"]["released_blocks"] == 0


@pytest.fixture
def preserved(ground: UsedGround) -> Mounted:
    """An unknown image, wholly preserved."""
    instance = ground.mounted(ground.stale(16 * MIB))
    await_map(instance)
    overwrite(instance.live_file)
    return instance


def test_a_released_range_reads_enodata_and_the_rest_stays(preserved: Mounted) -> None:
    preserved.snap_file.read_bytes()  # so that the kernel has it all
    done = snapfs("release", preserved.live, "--offset", "4M", "--length", "8M")
    assert (done.returncode, done.stdout) == (0, "8 MiB released\n")
    forget(preserved.snap_file)
    errors = [read_error(preserved.snap_file, offset * MIB) for offset in (0, 4, 11, 12)]
    assert errors == [None, errno.ENODATA, errno.ENODATA, None]
    assert preserved.status()["snapshot"]["released_blocks"] == 8 * MIB // BLOCK_BYTES


def test_all_of_a_snapshot_is_released(preserved: Mounted) -> None:
    done = snapfs("release", preserved.snap, "--all")
    assert (done.returncode, done.stdout) == (0, "16 MiB released\n")
    assert read_error(preserved.snap_file, 15 * MIB) == errno.ENODATA
    wait_until(lambda: preserved.status()["buffer"]["stored_bytes"] == 0, what="the room")


@pytest.mark.parametrize("words", [(), ("--all", "--offset", "0"), ("--offset", "16M"), ("--length", "17M")])
def test_a_range_that_cannot_be_is_refused(preserved: Mounted, words: tuple[str, ...]) -> None:
    done = snapfs("release", preserved.live, *words)
    assert done.returncode == 2
    assert done.stderr.startswith("snapfs: ")
    assert preserved.status()["snapshot"]["released_blocks"] == 0


def test_what_the_map_reads_is_not_the_pass(ground: UsedGround) -> None:
    instance = ground.mounted(ground.stale(MIB), "--single-pass")
    await_map(instance)
    assert instance.status()["snapshot"]["released_blocks"] == 0
    assert len(instance.snap_file.read_bytes()) == MIB
    wait_until(lambda: instance.status()["snapshot"]["owed_blocks"] == 0, what="the release")
