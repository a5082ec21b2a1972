"""Backups of a snapshot while somebody writes, with and without release, and of a new cut."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest
from imager_rig import (
    MIB,
    Bench,
    Original,
    checked_qcow2,
    files_of,
    live_load,
    mounted,
    overwrite,
    read_manifest,
    run,
    running,
    snapfs,
    wait_until,
)

from snapfs.commands.backup import backup as make_backup
from snapfs.destination.consent import Consent
from snapfs.errors import SnapfsError
from snapfs.imager.snapshot_source import SnapshotSource
from snapfs.options import BackupOptions

FORMATS = [("--format", "raw"), ("--format", "qcow2"), ("--format", "qcow2", "--compress")]


@pytest.mark.parametrize("words", FORMATS, ids=" ".join)
def test_the_cut_comes_back_whole_under_live_load(bench: Bench, original: Original, words: tuple[str, ...]) -> None:
    backup, restored = bench.path / "backup", bench.path / "restored.img"
    with bench.mounted():
        with mounted(bench.live_file, bench.path / "point", "-o", "loop") as point, live_load(point):
            snapfs("backup", bench.live, backup, *words, "--verify").ok()
        if words[1] == "qcow2":
            checked_qcow2(backup, bench.snap_file)
        else:
            run("cmp", backup, bench.snap_file)
    snapfs("restore", backup, restored).ok()
    run("e2fsck", "-fn", restored)
    assert files_of(restored, "ext4", bench.path / "point") == original.files


def test_any_name_of_the_instance_will_do(bench: Bench) -> None:
    with bench.mounted():
        for number, name in enumerate((bench.live, bench.snap, bench.snap_file, bench.image)):
            snapfs("backup", name, bench.path / f"backup{number}").ok()
        overalls = {read_manifest(bench.path / f"backup{number}")["blake3"] for number in range(4)}
        assert len(overalls) == 1
        cut = read_manifest(bench.path / "backup0")["cut"]
        assert cut["id"] == bench.status()["snapshot"]["id"]


def test_released_blocks_are_not_owed_any_more(bench: Bench, original: Original) -> None:
    backup = bench.path / "backup"
    with bench.mounted():
        snapfs("backup", bench.live, backup, "--release").ok()
        before = bench.status()["snapshot"]
        assert before["owed_blocks"] == 0
        overwrite(bench.live_file, 8 * MIB, 20 * MIB)
        after = bench.status()["snapshot"]
        assert after["preserved_blocks"] == before["preserved_blocks"]
        with pytest.raises(OSError, match="No data"):
            bench.snap_file.read_bytes()
        snapfs("backup", bench.live, bench.path / "again").refuses(1, "released")
    assert files_of(backup, "ext4", bench.path / "point") == original.files


def test_without_release_the_snapshot_stays_whole(bench: Bench) -> None:
    with bench.mounted():
        snapfs("backup", bench.live, bench.path / "one").ok()
        overwrite(bench.live_file, 0, 30 * MIB)
        snapfs("backup", bench.live, bench.path / "two").ok()
    run("cmp", bench.path / "one", bench.path / "two")


def test_what_was_preserved_and_released_goes_back_to_the_disk(bench: Bench) -> None:
    with bench.mounted():
        overwrite(bench.live_file, 0, 24 * MIB)
        assert bench.status()["buffer"]["stored_bytes"] > 4 * MIB
        snapfs("backup", bench.live, bench.path / "backup", "--release").ok()
        assert bench.status()["buffer"]["stored_bytes"] < MIB


def test_holes_of_the_image_are_not_read_but_what_was_written_since_is_zeros(bench: Bench) -> None:
    with bench.image.open("wb") as file:
        file.truncate(64 * MIB)
        file.write(b"\xff" * MIB)
    with bench.mounted():
        overwrite(bench.live_file, 20 * MIB, 5 * MIB)
        snapfs("backup", bench.live, bench.path / "backup").ok()
        manifest = read_manifest(bench.path / "backup")
        assert manifest["used_bytes"] == 64 * MIB
        assert manifest["data_bytes"] == 6 * MIB
        run("cmp", bench.path / "backup", bench.snap_file)


def test_what_was_deleted_and_preserved_is_not_in_a_backup(bench: Bench) -> None:
    """A block that the map says to be free is zeros in the view and in a backup, whatever the image has there."""
    offset = 12 * MIB
    content = bench.image.read_bytes()
    with bench.mounted():
        wait_until(lambda: bench.status()["snapshot"]["map"] == "ready")
        free_file = next(bench.image.with_name("disk.img.snapfs").glob("cut-*/free"))
        with free_file.open("r+b") as file:
            file.seek(offset // 4096 // 8)
            assert file.read(1) == b"\0", "all used"
            file.seek(offset // 4096 // 8)
            file.write(b"\2")
        snapfs("backup", bench.live, bench.path / "backup").ok()
        shown, saved = bench.snap_file.read_bytes(), (bench.path / "backup").read_bytes()
    free = slice(offset + 4096, offset + 8192)
    assert any(content[free])
    assert not any(shown[free])
    assert not any(saved[free])
    assert shown[: free.start] == saved[: free.start]


def test_an_image_that_was_replaced_is_not_asked_for_holes(bench: Bench) -> None:
    content = bench.image.read_bytes()
    with bench.mounted():
        bench.image.rename(bench.path / "aside.img")
        with bench.image.open("wb") as file:
            file.truncate(64 * MIB)
        snapfs("backup", bench.live, bench.path / "backup").ok()
        run("cmp", bench.path / "backup", bench.snap_file)
    assert (bench.path / "aside.img").read_bytes() == content


def test_cut_image_release_in_one_line(bench: Bench) -> None:
    """The backup holds what was written and synced before the command, not what was there at the mount."""
    backup = bench.path / "backup"
    with bench.mounted():
        with mounted(bench.live_file, bench.path / "point", "-o", "loop") as point:
            (point / "of today").write_bytes(b"new" * 100_000)
            first = bench.status()["snapshot"]["id"]
            snapfs("backup", "--cut", bench.live, backup).ok()
        snapshot = bench.status()["snapshot"]
        assert snapshot["id"] != first
        assert snapshot["owed_blocks"] == 0
    run("e2fsck", "-fn", backup)
    assert "of today" in files_of(backup, "ext4", bench.path / "point")
    assert read_manifest(backup)["cut"]["frozen"]


def test_a_range_can_be_released_by_hand(bench: Bench) -> None:
    with bench.mounted():
        snapfs("release", bench.live).refuses(2, "--all")
        snapfs("release", bench.live, "--all", "--offset", "4K").refuses(2, "--all")
        snapfs("release", bench.live, "--offset", "1T").refuses(2, "range inside")
        assert snapfs("release", bench.live, "--offset", "4K", "--length", "8K").ok().out == "8 KiB released\n"
        fd = os.open(bench.snap_file, os.O_RDONLY | os.O_DIRECT)
        try:
            with pytest.raises(OSError, match="No data"):
                os.preadv(fd, [_page()], 4096)
        finally:
            os.close(fd)
        snapfs("release", bench.snap, "--all").ok()
        assert bench.status()["snapshot"]["owed_blocks"] == 0


def _page() -> memoryview:
    return memoryview(mmap.mmap(-1, 4096))


def test_an_unmounted_image_owes_nothing(bench: Bench) -> None:
    snapfs("backup", bench.image, Path(bench.path / "backup"), "--release").refuses(2, "leave out --release")


def test_one_with_a_name_is_read_on_whatever_cut_comes(bench: Bench) -> None:
    """Also the newest, which is that no more meanwhile."""
    with bench.mounted():
        snapfs("snapshot", bench.live, "--name", "mon").ok()
        with running("backup", bench.live, bench.path / "backup", "--rate", "8M") as process:
            process.await_bytes(MIB)
            with process.stopped():
                overwrite(bench.live_file, 0, 30 * MIB)
                snapfs("snapshot", bench.live).ok()
            process.wait().ok()
        run("cmp", bench.path / "backup", bench.snap / ".snapshots" / "mon" / bench.image.name)


def test_one_that_is_deleted_meanwhile_is_said_to_be(bench: Bench) -> None:
    with bench.mounted():
        snapfs("snapshot", bench.live, "--name", "mon").ok()
        snapfs("snapshot", bench.live).ok()
        words = ("backup", bench.live, bench.path / "backup", "--snapshot", "mon", "--rate", "8M")
        with running(*words) as process:
            process.await_bytes(MIB)
            with process.stopped():
                snapfs("delete", bench.live, "mon").ok()
            process.wait().refuses(1, "The snapshot mon of ")
        assert not (bench.path / "backup").exists()


def test_an_interrupted_one_of_an_older_snapshot_is_gone_on_with(bench: Bench) -> None:
    with bench.mounted():
        snapfs("snapshot", bench.live, "--name", "mon").ok()
        overwrite(bench.live_file, 0, 8 * MIB)
        snapfs("snapshot", bench.live).ok()
        words = ("backup", bench.live, bench.path / "backup", "--snapshot", "mon")
        with running(*words, "--rate", "8M") as process:
            process.await_bytes(9 * MIB)
            process.interrupt()
            process.wait()
        snapfs("backup", bench.live, bench.path / "backup", "--resume").refuses(1, "")
        snapfs(*words, "--resume").ok()
        run("cmp", bench.path / "backup", bench.snap / ".snapshots" / "mon" / bench.image.name)


@pytest.mark.parametrize("words", [{}, {"format": "qcow2"}, {"update": True}, {"in_directory": True}], ids=str)
def test_nothing_is_touched_at_the_destination_before_the_map_is_known(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, words: dict[str, Any]
) -> None:
    dest = bench.path / "backup"
    options = BackupOptions(bench.live, dest, str(dest), **words)
    if options.in_directory:
        dest.mkdir()
    with bench.mounted():
        snapfs("backup", bench.live, dest, "--update" if options.update else "--verify").ok()

        def state() -> dict[Path, tuple[int, int]]:
            found = [path for path in bench.path.rglob("backup*") if path.is_file()]
            return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}

        before = state()

        def give_up(source: SnapshotSource) -> NoReturn:
            assert state() == before
            raise SnapfsError("There will be no map; try again.")

        monkeypatch.setattr(SnapshotSource, "_await_map", give_up)
        with pytest.raises(SnapfsError, match="no map"):
            make_backup(options, lambda progress: None, Consent(force=True))
        assert state() == before
