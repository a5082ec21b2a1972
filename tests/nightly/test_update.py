"""A raw backup that is brought up to date where it is: only what has changed."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from imager_rig import loop_device, make_ext4, make_files, mounted, overwrite, read_manifest
from nightly_rig import CELL, MIB, Nights, run, snapfs, with_other_bytes
from update_rig import (
    SIZE,
    debris,
    dest_of,
    killed_before_the_manifest,
    look_for_no_users,
    state_of,
    stay_before_others,
    update_here,
    updated,
    with_sparse_image,
    write_cells,
)

from snapfs.imager.half_way import Note, manifest_hash
from snapfs.imager.unread import Ranges
from snapfs.stamps import utc_now


@pytest.fixture(autouse=True)
def not_behind_others(monkeypatch: pytest.MonkeyPatch) -> None:
    stay_before_others(monkeypatch)


@pytest.fixture
def sparse_image(nights: Nights) -> Nights:
    return with_sparse_image(nights)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    look_for_no_users(monkeypatch)


def test_only_what_differs_is_written(sparse_image: Nights) -> None:
    nights = sparse_image
    assert updated(nights)["kind"] == "full"
    inode = dest_of(nights).stat().st_ino
    write_cells(nights.image, {257: os.urandom(CELL), 620: os.urandom(CELL)})
    run("fallocate", "--punch-hole", "--offset", str(2 * CELL), "--length", str(CELL), nights.image)
    made = updated(nights)
    assert (made["kind"], made["written_bytes"]) == ("update", 2 * CELL)
    assert "is not mounted" in made["why"]
    assert dest_of(nights).read_bytes() == nights.image.read_bytes()
    assert dest_of(nights).stat().st_ino == inode
    assert dest_of(nights).stat().st_blocks <= nights.image.stat().st_blocks, "what was freed is a hole"
    snapfs("verify", dest_of(nights)).ok()
    assert updated(nights, "--verify")["written_bytes"] == 0
    assert debris(nights) == set()


def test_what_somebody_else_has_changed_is_found_by_reading_it(sparse_image: Nights) -> None:
    nights = sparse_image
    update_here(nights)
    with_other_bytes(dest_of(nights), 5)
    with_other_bytes(dest_of(nights), 100 * CELL)
    made = updated(nights)
    assert "somebody else has changed" in made["why"]
    assert made["written_bytes"] == CELL
    assert dest_of(nights).read_bytes() == nights.image.read_bytes()


def test_nights_of_a_mounted_image(nights: Nights) -> None:
    """By what was noted, also when a night was killed: nothing but that is read."""
    dice = random.Random(3)
    make_files(nights.path / "content", 12 * MIB)
    make_ext4(nights.image, SIZE, nights.path / "content")
    with nights.mounted():
        with mounted(nights.live_file, nights.path / "point", "-o", "loop") as point:
            for night in range(3):
                made = updated(nights, "--cut", source=nights.live)
                assert (made["kind"], made["why"]) == (("update", "") if night else ("full", "all of it was made"))
                (checkpoint,) = nights.status()["checkpoints"]
                assert checkpoint["holders"] == [read_manifest(dest_of(nights))["update"]["holder"]]
                assert state_of(nights) == "whole"
                for path in dice.sample(sorted(path for path in point.iterdir() if path.is_file()), 3):
                    path.unlink()
                (point / f"day{night}").write_bytes(dice.randbytes(200_000))
                run("sync", "--file-system", point)
                if night == 0:
                    snapfs("snapshot", nights.live).ok()
                    assert killed_before_the_manifest(lambda: update_here(nights, nights.live))
        snapfs("snapshot", nights.live).ok()
        overwrite(nights.live_file, 20 * MIB, CELL)
        assert updated(nights, source=nights.live)["why"] == ""
        assert dest_of(nights).read_bytes() == nights.snap_file.read_bytes()
    run("e2fsck", "-fn", dest_of(nights))


def test_one_that_was_made_without_update_is_compared_once(nights: Nights) -> None:
    snapfs("backup", nights.image, dest_of(nights)).ok()
    overwrite(nights.image, MIB, CELL)
    with nights.mounted("--protect", "all"):
        made = updated(nights, source=nights.live)
        assert "was not mounted" in made["why"]
        assert made["written_bytes"] == CELL
        overwrite(nights.live_file, 2 * MIB, CELL)
        made = updated(nights, "--cut", source=nights.live)
        assert (made["why"], made["written_bytes"]) == ("", CELL)
    assert dest_of(nights).read_bytes() == nights.image.read_bytes()


def test_whoever_replaces_it_lets_go_of_its_checkpoint(nights: Nights) -> None:
    with nights.mounted():
        updated(nights, source=nights.live)
        assert nights.status()["checkpoints"]
        snapfs("backup", nights.live, dest_of(nights), "--force").ok()
        assert not nights.status()["checkpoints"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes loop devices")
def test_whoever_overwrites_it_on_a_device_lets_go_of_its_checkpoint(nights: Nights) -> None:
    disk, manifest = nights.path / "disk", nights.path / "manifest"
    disk.write_bytes(bytes(8 * MIB))
    with loop_device(disk) as device, nights.mounted():
        words = ("backup", nights.live, device, "--manifest", manifest, "--force")
        snapfs(*words, "--update").ok()
        assert nights.status()["checkpoints"]
        snapfs(*words).ok()
        assert not nights.status()["checkpoints"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes loop devices")
def test_a_block_device(sparse_image: Nights) -> None:
    nights = sparse_image
    disk, manifest = nights.path / "disk", nights.path / "manifest"
    disk.write_bytes(os.urandom(MIB))
    os.truncate(disk, SIZE + MIB)
    with loop_device(disk) as device:
        words = ("backup", nights.image, device, "--update")
        snapfs(*words).refuses(2, "--manifest")
        snapfs(*words, "--manifest", manifest).refuses(2, "--force")
        snapfs(*words, "--manifest", manifest, "--force").ok()
        write_cells(nights.image, {257: os.urandom(CELL), 2: bytes(CELL)})
        made = json.loads(snapfs(*words, "--manifest", manifest, "--json").ok().out)
        assert made["written_bytes"] == 2 * CELL
        snapfs("verify", device, "--manifest", manifest).ok()
        with_other_bytes(Path(device), 0)
        # Perhaps it is another disk. What an interrupted one has left does not change that.
        (nights.path / "manifest.update").write_text(note_text(manifest))
        snapfs(*words, "--manifest", manifest).refuses(2, "would be overwritten")
    assert disk.read_bytes()[CELL:SIZE] == nights.image.read_bytes()[CELL:]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes loop devices")
def test_disks_that_take_turns_under_one_name_are_compared(sparse_image: Nights) -> None:
    """Each has missed what the other was brought up to date with, and begins like that."""
    nights = sparse_image
    manifest, name = nights.path / "manifest", nights.path / "name"
    disks = [nights.path / "disk0", nights.path / "disk1"]
    for disk in disks:
        disk.write_bytes(bytes(SIZE))
    words = ("backup", "--cut", nights.live, name, "--manifest", manifest, "--update")
    with nights.mounted(), loop_device(disks[0]) as first, loop_device(disks[1]) as second:
        for night, device in enumerate((first, second, first)):
            name.unlink(missing_ok=True)
            name.symlink_to(device)
            overwrite(nights.live_file, (17 + night) * MIB, CELL)
            if night:
                snapfs(*words).refuses(2, "would be overwritten")
            made = json.loads(snapfs(*words, "--force", "--json").ok().out)
            assert not night or "is another disk than" in made["why"]
            snapfs("verify", name, "--manifest", manifest).ok()
        overwrite(nights.live_file, 30 * MIB, CELL)
        assert json.loads(snapfs(*words, "--json").ok().out)["why"] == ""
    assert disks[0].read_bytes() == nights.image.read_bytes()


def note_text(manifest: Path) -> str:
    """As of an update that had begun with the second extent."""
    ranges = Ranges([(256 * CELL, CELL)])
    return Note(manifest_hash(manifest), utc_now(), "disk.img", None, SIZE, ranges).text()
