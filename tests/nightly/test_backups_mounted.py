"""Nights of a mounted image: the restore of each equals its snapshot, byte for byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from imager_rig import loop_device, make_ext4, make_files, mounted, overwrite, running, wait_until
from nightly_rig import CELL, MIB, Nights, run, snapfs

FORGETFUL = Path(__file__).with_name("forgetful_backup.py")
POISONED = Path(__file__).with_name("poisoned_backup.py")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def ext4(nights: Nights) -> Nights:
    make_files(nights.path / "content", 12 * MIB)
    make_ext4(nights.image, 40 * MIB, nights.path / "content")
    return nights


def live_on(point: Path, dice: random.Random) -> None:
    """A day: files made, deleted, rewritten, cut short, lengthened."""
    names = sorted(path for path in point.iterdir() if path.is_file())
    for path in dice.sample(names, 3):
        path.unlink()
    for path in dice.sample([path for path in names if path.exists()], 3):
        with path.open("r+b") as file:
            file.seek(dice.randrange(max(path.stat().st_size, 1)))
            file.write(dice.randbytes(dice.choice((10, 5000, 200_000))))
    for number in range(3):
        (point / f"day{dice.randrange(1000)}-{number}").write_bytes(
            dice.randbytes(dice.choice((100, 70_000, 400_000)))
        )
    os.truncate(dice.choice([path for path in names if path.exists()]), dice.choice((0, 40_000)))
    os.sync()


@pytest.mark.parametrize("protect", ["used", "all"])
def test_every_night_comes_back_as_it_was(ext4: Nights, protect: str) -> None:
    dice = random.Random(7)
    nights = []
    with ext4.mounted("--protect", protect):
        with mounted(ext4.live_file, ext4.path / "point", "-o", "loop") as point:
            for number in range(5):
                snapfs("snapshot", ext4.live, "--name", f"night{number}").ok()
                made = ext4.back_up_of(ext4.live, "--snapshot", f"night{number}")
                assert made["kind"] == ("full" if number == 0 else "increment")
                if number:
                    assert (made["why"], made["read_bytes"] < 8 * MIB) == ("", True)
                shown = ext4.snap / ".snapshots" / f"night{number}" / ext4.image.name
                nights.append(shown.read_bytes())
                snapfs("verify", ext4.backups, "--against", ext4.live).ok()
                live_on(point, dice)
        for number, night in enumerate(nights):
            name = ext4.listed()[number]["name"]
            assert ext4.restored("--at", name) == night
            run("e2fsck", "-fn", ext4.path / "restored.img")
            words = ("-f", "qcow2", "-F", "raw", ext4.backups / f"{name}.qcow2", ext4.path / "restored.img")
            run("qemu-img", "compare", "-q", *words)
            run("qemu-img", "check", "-q", ext4.backups / f"{name}.qcow2")
    snapfs("verify", ext4.backups, "--all").ok()


def test_what_was_written_between_two_snapshots_is_read_and_nothing_else(ext4: Nights) -> None:
    with ext4.mounted("--protect", "all"):
        snapfs("snapshot", ext4.live, "--name", "mon").ok()
        ext4.back_up_of(ext4.live, "--snapshot", "mon")
        overwrite(ext4.live_file, 12 * MIB + 100, 10)
        overwrite(ext4.live_file, 20 * MIB, 2 * CELL)
        snapfs("snapshot", ext4.live, "--name", "tue").ok()
        overwrite(ext4.live_file, 30 * MIB, CELL)
        made = ext4.back_up_of(ext4.live, "--snapshot", "tue")
        assert (made["why"], made["read_bytes"], made["data_bytes"]) == ("", 3 * CELL, 3 * CELL)
        assert ext4.restored() == (ext4.snap / ".snapshots" / "tue" / ext4.image.name).read_bytes()


def test_a_full_one_when_the_block_size_has_changed(ext4: Nights) -> None:
    ext4.back_up()
    with ext4.mounted("--block-size", "64K"):
        made = ext4.back_up_of(ext4.live)
        assert (made["kind"], made["why"]) == ("full", "the block size went from 4 KiB to 64 KiB")


def test_an_interrupted_one_cannot_be_gone_on_with_after_another_cut(ext4: Nights) -> None:
    with ext4.mounted():
        with running("backup", ext4.live, ext4.backups, "--rate", "8M") as process:
            process.await_bytes(9 * MIB)
            process.send(signal.SIGINT)
            process.wait()
        snapfs("snapshot", ext4.live).ok()
        snapfs("backup", ext4.live, ext4.backups, "--resume").refuses(1, "of another backup", "cannot be resumed")
        done = snapfs("backup", ext4.live, ext4.backups).ok()
        assert "was removed" in done.err
    assert ext4.debris() == set()


def test_a_backup_of_an_older_snapshot_is_compared(ext4: Nights) -> None:
    with ext4.mounted("--protect", "all"):
        for name in ("mon", "tue"):
            snapfs("snapshot", ext4.live, "--name", name).ok()
            overwrite(ext4.live_file, 12 * MIB, CELL)
        ext4.back_up_of(ext4.live, "--snapshot", "tue")
        assert "of a later snapshot" in ext4.back_up_of(ext4.live, "--snapshot", "mon")["why"]
        assert ext4.restored() == (ext4.snap / ".snapshots" / "mon" / ext4.image.name).read_bytes()
        # By the time of its cut the other one is the newest; the list goes by when they were made.
        assert [one["kind"] for one in ext4.listed()] == ["full", "increment"]


def test_a_backup_after_an_overflow_is_compared(ext4: Nights) -> None:
    with ext4.mounted("--protect", "all", "--buffer-limit", "1M", "--on-overflow", "break-oldest"):
        snapfs("snapshot", ext4.live, "--name", "mon").ok()
        ext4.back_up_of(ext4.live, "--snapshot", "mon")
        overwrite(ext4.live_file, 0, 8 * MIB)
        wait_until(lambda: ext4.status()["snapshot"]["state"] != "active")
        snapfs("snapshot", ext4.live, "--name", "tue").ok()
        made = ext4.back_up_of(ext4.live, "--snapshot", "tue")
        assert "was lost since the last backup" in made["why"]
        assert ext4.restored() == ext4.live_file.read_bytes()


def test_a_cell_that_an_increment_left_out_is_found_with_the_snapshot(ext4: Nights) -> None:
    """As if a bit of a map had been dropped: by their hashes the backups are whole."""
    with ext4.mounted("--protect", "all"):
        ext4.back_up_of(ext4.live)
        overwrite(ext4.live_file, 12 * MIB, CELL)
        snapfs("snapshot", ext4.live).ok()
        words = ("backup", str(ext4.live), str(ext4.backups))
        subprocess.run([sys.executable, FORGETFUL, str(12 * MIB), *words], check=True, cwd=ROOT, timeout=120)
        snapfs("verify", ext4.backups, "--all").ok()
        done = snapfs("verify", ext4.backups, "--against", ext4.live)
        done.refuses(3, f"64 KiB at {12 * MIB} of the image is something else", "--full")
        ext4.back_up_of(ext4.live, "--full")
        snapfs("verify", ext4.backups, "--against", ext4.live).ok()


@pytest.mark.parametrize("protect", ["used", "all"])
def test_nothing_that_an_increment_leaves_out_matters(ext4: Nights, protect: str) -> None:
    dice = random.Random(11)
    with ext4.mounted("--protect", protect), mounted(ext4.live_file, ext4.path / "point", "-o", "loop") as point:
        snapfs("snapshot", ext4.live, "--name", "mon").ok()
        ext4.back_up_of(ext4.live, "--snapshot", "mon")
        live_on(point, dice)
        snapfs("snapshot", ext4.live, "--name", "tue").ok()
        live_on(point, dice)
        poison(ext4, -1, "tue")
        assert (ext4.facts(1)["kind"], ext4.facts(1)["why"]) == ("increment", "")
        assert ext4.restored() == (ext4.snap / ".snapshots" / "tue" / ext4.image.name).read_bytes()
        snapfs("verify", ext4.backups, "--against", ext4.live).ok()


def test_garbage_in_what_an_increment_reads_is_found_with_the_snapshot(ext4: Nights) -> None:
    """Without this the test above would say nothing."""
    with ext4.mounted("--protect", "all"):
        ext4.back_up_of(ext4.live)
        overwrite(ext4.live_file, 12 * MIB, 2 * CELL)
        snapfs("snapshot", ext4.live, "--name", "tue").ok()
        poison(ext4, 12 * MIB, "tue")
        done = snapfs("verify", ext4.backups, "--against", ext4.live)
        done.refuses(3, f"64 KiB at {12 * MIB} of the image is something else")


def poison(nights: Nights, offset: int, snapshot: str) -> None:
    """A backup for which all that it leaves out is garbage, and the cell at the offset."""
    words = ("backup", str(nights.live), str(nights.backups), "--snapshot", snapshot, "--verify")
    subprocess.run([sys.executable, POISONED, str(offset), *words], check=True, cwd=ROOT, timeout=120)


def test_a_snapshot_that_is_gone_cannot_be_compared_with(ext4: Nights) -> None:
    with ext4.mounted():
        ext4.back_up_of(ext4.live)
        snapfs("snapshot", ext4.live).ok()
        snapfs("verify", ext4.backups, "--against", ext4.live).refuses(1, "has no snapshot", "snapfs list")


def test_an_unmounted_image_that_was_changed_cannot_be_compared_with(nights: Nights) -> None:
    nights.back_up()
    snapfs("verify", nights.backups, "--against", nights.image).ok()
    nights.change(3)
    snapfs("verify", nights.backups, "--against", nights.image).refuses(2, "was changed since")


@pytest.mark.parametrize("stays", [True, False], ids=["snapshot", "checkpoint"])
def test_what_was_written_to_a_device_while_it_was_not_mounted_is_in_the_next_one(
    nights: Nights, stays: bool
) -> None:
    nights.image.write_bytes(os.urandom(4 * MIB))
    with loop_device(nights.image) as device:
        mount = ("mount", device, nights.live, nights.snap, "--store", nights.path / "store")
        snapfs(*mount).ok()
        snapfs("snapshot", nights.live, "--name", "mon").ok()
        nights.back_up_of(nights.live, "--snapshot", "mon")
        if not stays:
            snapfs("delete", nights.live, "mon").ok()
        snapfs("umount", nights.live).ok()
        overwrite(device, 3 * CELL, CELL)
        assert "checkpoints are void" in snapfs(*mount).ok().err
        snapfs("snapshot", nights.live, "--name", "tue").ok()
        made = nights.back_up_of(nights.live, "--snapshot", "tue")
        assert (made["why"] != "", made["data_bytes"]) == (True, CELL)
        assert nights.restored() == (nights.snap / ".snapshots" / "tue" / device.name).read_bytes()
        snapfs("umount", nights.live).ok()
