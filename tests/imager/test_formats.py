"""Backups of unmounted images in every format, restored: filesystems clean, every file the same."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from imager_rig import (
    MIB,
    Bench,
    Original,
    checked_qcow2,
    digests,
    files_of,
    loop_device,
    make_files,
    mounted,
    names_in,
    read_manifest,
    run,
    snapfs,
)

from tests.cli.command_line import SNAPFS

FORMATS = [("--format", "raw"), ("--format", "qcow2"), ("--format", "qcow2", "--compress")]


@pytest.mark.parametrize("words", FORMATS, ids=" ".join)
def test_an_ext4_comes_back_whole(bench: Bench, original: Original, words: tuple[str, ...]) -> None:
    backup, restored = bench.path / "backup", bench.path / "restored.img"
    snapfs("backup", bench.image, backup, *words, "--verify").ok()
    snapfs("restore", backup, restored).ok()
    run("e2fsck", "-fn", restored)
    assert files_of(restored, "ext4", bench.path / "point") == original.files
    assert restored.stat().st_size == bench.image.stat().st_size
    if words[1] == "qcow2":
        checked_qcow2(backup, restored)
    assert {"backup", "backup.json"} == {name for name in names_in(bench.path) if name.startswith("backup")}


def test_only_what_is_used_is_read_and_stored(bench: Bench) -> None:
    backup = bench.path / "backup"
    snapfs("backup", bench.image, backup).ok()
    manifest = read_manifest(backup)
    used = manifest["used_bytes"]
    assert 28 * MIB < used < 50 * MIB
    assert manifest["data_bytes"] <= used + 2 * MIB
    assert backup.stat().st_blocks * 512 <= used + 2 * MIB
    assert manifest["regions"][0]["kind"] == "ext4"


def test_what_was_deleted_is_not_in_a_backup(bench: Bench) -> None:
    secret = b"nobody shall find this again" * 1000
    with mounted(bench.image, bench.path / "point", "-o", "loop") as point:
        (point / "small").write_bytes(secret)
        run("sync", "-f", point)
        (point / "small").unlink()
    assert secret[:64] in bench.image.read_bytes()
    snapfs("backup", bench.image, bench.path / "backup").ok()
    assert secret[:64] not in (bench.path / "backup").read_bytes()


def test_the_stream_is_the_raw_image(bench: Bench) -> None:
    snapfs("backup", bench.image, bench.path / "backup").ok()
    with (bench.path / "stream").open("wb") as file:
        # Through a pipe, as to zstd or ssh.
        writer = subprocess.Popen([SNAPFS, "backup", bench.image, "-"], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        while piece := writer.stdout.read(MIB):
            file.write(piece)
        writer.stdout.close()
        assert writer.wait(60) == 0
    run("cmp", bench.path / "stream", bench.path / "backup")


def test_a_block_device_gets_the_image(bench: Bench, original: Original) -> None:
    backing = bench.path / "device.img"
    backing.write_bytes(b"\xa5" * (72 * MIB))
    with loop_device(backing) as device:
        snapfs("backup", bench.image, device).refuses(2, "--force", str(device))
        snapfs("backup", bench.image, device, "--force", "--manifest", bench.path / "m.json", "--verify").ok()
        run("e2fsck", "-fn", device)
        snapfs("verify", device, "--manifest", bench.path / "m.json").ok()
    assert backing.read_bytes()[64 * MIB :] == b"\xa5" * (8 * MIB)
    assert files_of(backing, "ext4", bench.path / "point") == original.files


def test_a_device_that_is_too_small_is_refused(bench: Bench) -> None:
    (bench.path / "small.img").write_bytes(bytes(MIB))
    with loop_device(bench.path / "small.img") as device:
        snapfs("backup", bench.image, device, "--force").refuses(1, str(device), "large enough")


def test_an_image_that_is_no_multiple_of_anything(bench: Bench) -> None:
    with bench.image.open("ab") as file:
        file.write(b"the end" * 100)
    for words in FORMATS:
        backup, restored = bench.path / "backup", bench.path / "restored.img"
        snapfs("backup", bench.image, backup, *words, "--force", "--verify").ok()
        snapfs("restore", backup, restored).ok()
        assert restored.read_bytes()[64 * MIB :] == b"the end" * 100
        restored.unlink()


def make_xfs(image: Path, directory: Path) -> int:
    with image.open("wb") as file:
        file.truncate(300 * MIB)
    run("mkfs.xfs", "-q", image)
    with mounted(image, directory, "-o", "loop") as point:
        make_files(point / "files", 10 * MIB)
    return 0


def make_ntfs_disk(image: Path, directory: Path) -> int:
    """A GPT with one NTFS partition."""
    with image.open("wb") as file:
        file.truncate(64 * MIB)
    run("sgdisk", "-n", "1:2048:+50M", "-t", "1:0700", image)
    with loop_device(image, f"--offset={MIB}", f"--sizelimit={50 * MIB}") as device:
        run("mkntfs", "-q", "-F", "-s", "512", "-p", "2048", "-H", "16", "-S", "63", device)
        with mounted(device, directory, "-t", "ntfs-3g") as point:
            make_files(point / "files", 8 * MIB)
    return MIB


@pytest.mark.parametrize(("kind", "make"), [("xfs", make_xfs), ("ntfs", make_ntfs_disk)])
@pytest.mark.parametrize("words", [FORMATS[0], FORMATS[2]], ids=" ".join)
def test_other_filesystems_come_back_whole(
    bench: Bench, kind: str, make: Callable[[Path, Path], int], words: tuple[str, ...]
) -> None:
    image, backup, restored = bench.path / "other.img", bench.path / "backup", bench.path / "restored.img"
    offset = make(image, bench.path / "point")
    files = files_of(image, kind, bench.path / "point", offset)
    assert len(files) > 3
    snapfs("backup", image, backup, *words).ok()
    assert read_manifest(backup)["data_bytes"] < image.stat().st_size // 2
    snapfs("restore", backup, restored).ok()
    if kind == "xfs":
        run("xfs_repair", "-n", restored)
    else:
        with loop_device(restored, f"--offset={offset}", f"--sizelimit={50 * MIB}") as device:
            run("ntfsfix", "-n", device)
        run("sgdisk", "-v", restored)
    assert files_of(restored, kind, bench.path / "point", offset) == files


def test_an_unknown_image_is_taken_whole(bench: Bench) -> None:
    with bench.image.open("wb") as file:
        file.truncate(40 * MIB)
        file.seek(30 * MIB)
        file.write(b"\xff" * 100)
    snapfs("backup", bench.image, bench.path / "backup").ok()
    manifest = read_manifest(bench.path / "backup")
    assert manifest["used_bytes"] == 40 * MIB
    assert manifest["data_bytes"] < MIB, "holes cost nothing"
    run("cmp", bench.image, bench.path / "backup")


def test_digests_are_those_of_the_files(bench: Bench, original: Original) -> None:
    """The judge of this file sees a changed byte."""
    with mounted(bench.image, bench.path / "point", "-o", "loop") as point:
        name = next(iter(original.files))
        with (point / name).open("r+b") as file:
            file.write(b"?")
        assert digests(point) != original.files
