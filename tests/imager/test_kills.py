"""Ends that nobody announces: kills of every process that takes part, and faults while blocks are released."""

from __future__ import annotations

import signal

import pytest
from imager_rig import (
    MIB,
    Bench,
    Original,
    files_of,
    names_in,
    overwrite,
    read_manifest,
    run,
    running,
    snapfs,
    wait_until,
)

from tests.cli.command_line import small_filesystem
from tests.mount.mounted import find_processes

SLOWLY = ("--rate", "12M")
QCOW2 = ("--format", "qcow2")


@pytest.mark.parametrize("words", [(), QCOW2, (*QCOW2, "--compress")], ids=" ".join)
def test_a_killed_backup_is_resumed(bench: Bench, original: Original, words: tuple[str, ...]) -> None:
    backup = bench.path / "backup"
    with bench.mounted():
        with running("backup", bench.live, backup, *SLOWLY, *words) as process:
            process.await_bytes(18 * MIB)
            process.send(signal.SIGKILL)
            process.wait()
        assert "backup" not in names_in(bench.path)
        overwrite(bench.live_file, 0, 32 * MIB)
        snapfs("backup", bench.live, backup, "--resume", "--verify", *words).ok()
    snapfs("restore", backup, bench.path / "restored.img").ok()
    assert files_of(bench.path / "restored.img", "ext4", bench.path / "point") == original.files


def test_a_killed_qemu_nbd_is_said_and_resumed(bench: Bench) -> None:
    backup = bench.path / "backup"
    with bench.mounted():
        with running("backup", bench.live, backup, *SLOWLY, *QCOW2) as process:
            process.await_bytes(8 * MIB)
            with process.stopped():
                process.kill_child("qemu-nbd")
            process.wait().refuses(1, "qemu-nbd", "ended half-way", "back up again")
        assert not {"backup", "backup.partial"} & names_in(bench.path)
        assert bench.status()["snapshot"]["state"] == "active"
        # Nothing was known to be on the disk: nothing is left to be resumed.
        snapfs("backup", bench.live, backup, *QCOW2).ok()
        run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", backup, bench.snap_file)


def test_a_qcow2_that_vanishes_is_said(bench: Bench) -> None:
    with bench.mounted():
        with running("backup", bench.live, bench.path / "backup", "--release", *SLOWLY, *QCOW2) as process:
            process.await_bytes(4 * MIB)
            (bench.path / "backup.partial").unlink()
            process.wait().refuses(1, "has vanished")
        assert "backup" not in names_in(bench.path)
        assert bench.status()["snapshot"]["released_blocks"] == 0, "nothing is released that is nowhere"


def test_a_server_killed_while_blocks_are_released(bench: Bench, original: Original) -> None:
    backup = bench.path / "backup"
    bench.mount().ok()
    processes = find_processes(bench.status()["pid"])
    try:
        with running("backup", bench.live, backup, "--release", *SLOWLY) as process:
            process.await_bytes(18 * MIB)
            with process.stopped():
                overwrite(bench.live_file, 0, 16 * MIB)
                for name in ("supervisor", "live", "snapshot", "compactor"):
                    processes[name].send(signal.SIGKILL)
            process.wait().refuses(1, "killed", "--resume")
        for name in processes:
            processes[name].await_end()
    finally:
        for one in processes.values():
            one.close()
    with bench.mounted():
        overwrite(bench.live_file, 16 * MIB, 16 * MIB)
        snapfs("backup", bench.live, backup, "--release", "--resume").ok()
        assert bench.status()["snapshot"]["owed_blocks"] == 0
    assert files_of(backup, "ext4", bench.path / "point") == original.files


def test_a_full_disk_while_blocks_are_released(bench: Bench, original: Original) -> None:
    """What did not fit is still owed, so that it can be written later, whatever happens to the live data."""
    with small_filesystem(bench.path, 60 * MIB) as point, bench.mounted():
        (point / "filler").write_bytes(bytes(25 * MIB))
        backup = point / "backup"
        snapfs("backup", bench.live, backup, "--release").refuses(1, "does not fit", "--resume")
        assert bench.status()["snapshot"]["owed_blocks"] > 0
        overwrite(bench.live_file, 0, 64 * MIB)
        (point / "filler").unlink()
        snapfs("backup", bench.live, backup, "--release", "--resume", "--verify").ok()
        assert files_of(backup, "ext4", bench.path / "point") == original.files


def test_an_overflowed_snapshot_cannot_be_resumed(bench: Bench) -> None:
    backup = bench.path / "backup"
    with bench.mounted("--buffer-limit", "2M"):
        with running("backup", bench.live, backup, "--release", *SLOWLY) as process:
            process.await_bytes(18 * MIB)
            with process.stopped():
                overwrite(bench.live_file, 0, 64 * MIB)
                wait_until(lambda: bench.status()["snapshot"]["state"] == "overflowed")
            process.wait().refuses(3, "overflowed")
        snapfs("backup", bench.live, backup, "--release", "--resume").refuses(3, "overflowed", "new cut")
        assert "backup" not in names_in(bench.path)
        # A new cut, and the nightly job goes on as if nothing had been.
        snapfs("backup", "--cut", bench.live, backup, "--force").ok()
    assert read_manifest(backup)["image_bytes"] == 64 * MIB


def test_an_image_that_does_not_fit_leaves_nothing(bench: Bench) -> None:
    snapfs("backup", bench.image, bench.path / "backup").ok()
    with small_filesystem(bench.path, 16 * MIB) as point:
        before = names_in(point)
        snapfs("restore", bench.path / "backup", point / "restored.img").refuses(1, "does not fit")
        assert names_in(point) == before


def test_a_killed_restore_gives_no_image(bench: Bench) -> None:
    snapfs("backup", bench.image, bench.path / "backup").ok()
    with running("restore", bench.path / "backup", bench.path / "restored.img", *SLOWLY) as process:
        process.await_bytes(8 * MIB)
        process.send(signal.SIGKILL)
        process.wait()
    assert "restored.img" not in names_in(bench.path)
    snapfs("restore", bench.path / "backup", bench.path / "restored.img").refuses(2, "left by an interrupted")
    snapfs("restore", bench.path / "backup", bench.path / "restored.img", "--force").ok()
    run("e2fsck", "-fn", bench.path / "restored.img")


def test_what_a_killed_command_left_is_gone_at_the_next(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = bench.path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with running("backup", bench.image, bench.path / "backup", *SLOWLY, *QCOW2) as process:
        process.await_bytes(2 * MIB)
        process.send(signal.SIGKILL)
        process.wait()
    assert len(list(temporary.iterdir())) == 1
    snapfs("backup", bench.image, bench.path / "backup", "--force", *QCOW2).ok()
    assert list(temporary.iterdir()) == []
