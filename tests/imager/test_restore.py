"""Restoring and verifying: sizes, free areas, damage."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from imager_rig import MIB, Bench, loop_device, mounted, names_in, overwrite, read_manifest, run, snapfs


@pytest.fixture
def backup(bench: Bench) -> Path:
    path = bench.path / "backup"
    snapfs("backup", bench.image, path).ok()
    return path


def damage(backup: Path) -> int:
    """Flip a bit in the second extent; its offset."""
    extents = [extent for extent in read_manifest(backup)["extents"] if extent["blake3"]]
    at = extents[1]["offset"] + extents[1]["length"] // 2
    with backup.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))
    return int(extents[1]["offset"])


def first_free(backup: Path) -> int:
    """The offset of the first free MiB that no extent touches."""
    extents = read_manifest(backup)["extents"]
    starts = [extent["offset"] for extent in extents[1:]] + [64 * MIB]
    for extent, start in zip(extents, starts, strict=True):
        if start - extent["offset"] - extent["length"] >= MIB:
            return int(extent["offset"] + extent["length"])
    raise AssertionError("the image is full")


def test_a_damaged_backup_is_found(backup: Path) -> None:
    snapfs("verify", backup).ok()
    offset = damage(backup)
    snapfs("verify", backup).refuses(3, "is damaged", f"at {offset}")


def test_a_damaged_backup_gives_no_new_image(bench: Bench, backup: Path) -> None:
    damage(backup)
    before = names_in(bench.path)
    snapfs("restore", backup, bench.path / "restored.img").refuses(3, "is damaged")
    assert names_in(bench.path) == before


def test_a_backup_that_was_cut_short_is_found(backup: Path) -> None:
    os.truncate(backup, 50 * MIB)
    snapfs("verify", backup).refuses(3, "is missing")


def test_a_backup_that_is_not_there_is_refused(bench: Bench) -> None:
    for words in (("verify",), ("restore", bench.path / "restored.img")):
        snapfs(words[0], bench.path / "nothing", *words[1:]).refuses(1, "does not exist")


def test_a_backup_without_its_manifest_is_refused(bench: Bench, backup: Path) -> None:
    (bench.path / "backup.json").unlink()
    snapfs("verify", backup).refuses(1, "backup.json")
    snapfs("restore", backup, bench.path / "restored.img").refuses(1, "backup.json")


def test_a_manifest_that_was_tampered_with_is_refused(bench: Bench, backup: Path) -> None:
    manifest = read_manifest(backup)
    del manifest["extents"][1]
    (bench.path / "backup.json").write_text(json.dumps(manifest))
    snapfs("verify", backup).refuses(3, "no whole manifest")


def test_free_areas_become_holes(bench: Bench, backup: Path) -> None:
    free = first_free(backup)
    target = bench.path / "target.img"
    target.write_bytes(b"\xa5" * (64 * MIB))
    snapfs("restore", backup, target, "--force", "--verify").ok()
    run("cmp", target, backup)
    assert target.read_bytes()[free : free + MIB] == bytes(MIB)
    assert target.stat().st_blocks * 512 < 50 * MIB


def test_free_areas_are_left_alone_if_asked(bench: Bench, backup: Path) -> None:
    free = first_free(backup)
    target = bench.path / "target.img"
    target.write_bytes(b"\xa5" * (64 * MIB))
    snapfs("restore", backup, target, "--force", "--keep-free").ok()
    assert target.read_bytes()[free : free + MIB] == b"\xa5" * MIB
    run("e2fsck", "-fn", target)


def test_an_image_is_not_overwritten_unasked(bench: Bench, backup: Path) -> None:
    overwrite(bench.image, 0, MIB)
    content = bench.image.read_bytes()
    snapfs("restore", backup, bench.image).refuses(2, "--force")
    assert bench.image.read_bytes() == content
    snapfs("restore", backup, bench.image, "--force").ok()
    run("e2fsck", "-fn", bench.image)


def test_an_image_of_another_size_is_refused(bench: Bench, backup: Path) -> None:
    (bench.path / "target.img").write_bytes(bytes(MIB))
    snapfs("restore", backup, bench.path / "target.img", "--force").refuses(1, "1 MiB", "64 MiB")


def test_an_image_in_use_is_refused(bench: Bench, backup: Path) -> None:
    with mounted(bench.image, bench.path / "point", "-o", "loop"):
        snapfs("restore", backup, bench.image, "--force").refuses(1, "is in use")


def test_a_device_is_restored(bench: Bench, backup: Path) -> None:
    target = bench.path / "target.img"
    target.write_bytes(b"\xa5" * (66 * MIB))
    with loop_device(target) as device:
        snapfs("restore", backup, device).refuses(2, "--force")
        snapfs("restore", backup, device, "--force", "--verify").ok()
        run("e2fsck", "-fn", device)
        run("cmp", "-n", str(64 * MIB), device, backup)


def test_a_backup_onto_itself_is_refused(backup: Path) -> None:
    snapfs("restore", backup, backup, "--force").refuses(2, "itself")
