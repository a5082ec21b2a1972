"""Wherever a backup ends, the chain is as before or has one more link; and one works on it at a time."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from pathlib import Path

import pytest
from imager_rig import overwrite, running
from nightly_rig import MIB, Nights, run, snapfs

from snapfs.backups.left import settle
from snapfs.system import libc
from tests.cli.command_line import small_filesystem

MOST = 60


def killed_at(step: int, nights: Nights, *words: str) -> bool:
    """A backup that is killed before this step; False when it has come to its end."""
    done = snapfs("backup", nights.image, nights.backups, *words, die_before=step)
    assert done.code in (0, -signal.SIGKILL), done.err
    return done.code != 0


def test_killed_at_every_step_there_is_one_link_more_or_none(nights: Nights) -> None:
    before = nights.image.read_bytes()
    nights.back_up()
    after = nights.change(3, 20)
    kept = nights.path / "kept"
    shutil.copytree(nights.backups, kept)
    counts = []
    for step in range(MOST):
        shutil.rmtree(nights.backups)
        shutil.copytree(kept, nights.backups)
        was_killed = killed_at(step, nights)
        counts.append(len(nights.listed()))
        assert nights.restored() == (before, after)[counts[-1] - 1]
        nights.back_up()
        assert nights.debris() == set(), step
        assert nights.restored() == after
        snapfs("verify", nights.backups, "--all").ok()
        if not was_killed:
            break
    assert not was_killed
    assert set(counts) == {1, 2}
    assert counts == sorted(counts)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_killed_at_every_step_what_root_made_of_the_image_of_another_is_no_obstacle(nights: Nights) -> None:
    os.chown(nights.image, 12345, 12345)
    nights.back_up()
    image = nights.change(3)
    kept = nights.path / "kept"
    run("cp", "-a", nights.backups, kept)
    for step in range(MOST):
        shutil.rmtree(nights.backups)
        run("cp", "-a", kept, nights.backups)
        was_killed = killed_at(step, nights)
        nights.back_up()
        assert nights.debris() == set(), step
        assert {path.stat().st_uid for path in nights.backups.iterdir()} == {12345}
        if not was_killed:
            break
    assert not was_killed
    assert nights.restored() == image


def test_what_only_lacks_its_names_gets_them_from_the_next_backup(nights: Nights) -> None:
    nights.back_up()
    image = nights.change(7)
    kept = nights.path / "kept"
    shutil.copytree(nights.backups, kept)
    for step in range(MOST):
        shutil.rmtree(nights.backups)
        shutil.copytree(kept, nights.backups)
        assert killed_at(step, nights)
        if len(list(nights.backups.glob("*.cells"))) == 2:
            break
    assert len(list(nights.backups.glob("*.json.partial"))) == 1
    assert len(nights.listed()) == 1
    nights.back_up()
    assert len(nights.listed()) == 3
    assert nights.restored("--at", nights.listed()[1]["name"]) == image
    assert nights.debris() == set()


def test_what_gets_its_names_later_is_on_the_disk_by_then(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its maker may have been killed before that: after a power loss the facts would be empty."""
    for step in range(MOST):
        assert killed_at(step, nights)
        facts = next(nights.backups.glob("*.json.partial"), None)
        if facts is not None and facts.stat().st_size:
            break
        for path in nights.backups.iterdir():
            path.unlink()
    synced, fsync, rename_new = [], os.fsync, libc.rename_new

    def noted(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def checked(partial: Path, path: Path) -> None:
        assert partial in synced
        rename_new(partial, path)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(libc, "rename_new", checked)
    assert settle(nights.backups) == []
    assert len(nights.listed()) == 1


def test_an_interrupted_one_is_gone_on_with(nights: Nights) -> None:
    nights.image.write_bytes(os.urandom(40 * MIB))
    nights.back_up()
    overwrite(nights.image, MIB, 38 * MIB)
    with running("backup", nights.image, nights.backups, "--rate", "16M") as process:
        process.await_bytes(20 * MIB)
        process.interrupt()
        process.wait().refuses(130, "--resume goes on")
    assert len(nights.listed()) == 1
    assert nights.back_up("--resume", "--verify")["kind"] == "increment"
    assert nights.debris() == set()
    assert nights.restored() == nights.image.read_bytes()
    snapfs("verify", nights.backups, "--all").ok()


def test_the_first_of_a_directory_is_gone_on_with(nights: Nights) -> None:
    nights.image.write_bytes(os.urandom(40 * MIB))
    with running("backup", nights.image, nights.backups, "--rate", "16M") as process:
        process.await_bytes(20 * MIB)
        process.interrupt()
        process.wait().refuses(130, "--resume goes on")
    snapfs("backups", nights.backups).refuses(2, "no backup")
    assert nights.back_up("--resume")["kind"] == "full"
    nights.change(3)
    assert nights.back_up()["kind"] == "increment"
    assert nights.debris() == set()
    assert nights.restored() == nights.image.read_bytes()
    snapfs("verify", nights.backups, "--all").ok()


def test_an_interrupted_one_that_nobody_goes_on_with_is_removed(nights: Nights) -> None:
    nights.image.write_bytes(os.urandom(40 * MIB))
    with running("backup", nights.image, nights.backups, "--rate", "16M") as process:
        process.await_bytes(20 * MIB)
        process.send(signal.SIGKILL)
        process.wait()
    overwrite(nights.image, 0, MIB)
    snapfs("backup", nights.image, nights.backups, "--resume").refuses(1, "of another backup", "cannot be resumed")
    done = snapfs("backup", nights.image, nights.backups).ok()
    assert "What an interrupted backup had left of" in done.err
    assert nights.debris() == set()
    snapfs("backup", nights.image, nights.backups, "--resume").refuses(1, "nothing to resume")


def test_one_that_ends_early_leaves_nothing(nights: Nights) -> None:
    nights.back_up()
    nights.change(1)
    with running("backup", nights.image, nights.backups, "--rate", "1M") as process:
        process.await_bytes(MIB)
        process.interrupt()
        process.wait().refuses(130, "nothing is left behind")
    assert nights.debris() == set()


def test_a_second_backup_is_refused_while_one_is_made(nights: Nights) -> None:
    nights.image.write_bytes(os.urandom(20 * MIB))
    with running("backup", nights.image, nights.backups, "--rate", "8M") as process:
        process.await_bytes(2 * MIB)
        with process.stopped():
            snapfs("backup", nights.image, nights.backups).refuses(1, "is in use", "snapfs")
        process.wait().ok()
    assert len(nights.listed()) == 1


def test_several_read_and_then_nobody_changes(nights: Nights) -> None:
    nights.back_up()
    fd = os.open(nights.backups, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
        assert nights.restored() == nights.image.read_bytes()
        assert "it is not noted" in snapfs("verify", nights.backups).ok().err
        snapfs("backup", nights.image, nights.backups).refuses(1, "is in use")
    finally:
        os.close(fd)


def test_a_disk_that_is_full_leaves_the_chain_as_it_was(nights: Nights) -> None:
    nights.image.write_bytes(os.urandom(12 * MIB))
    with small_filesystem(nights.path, 40 * MIB) as point:
        nights.backups.rmdir()
        nights.backups.symlink_to(point)
        nights.back_up()
        before = nights.image.read_bytes()
        overwrite(nights.image, 0, 12 * MIB)
        filler = point / "filler"
        filler.write_bytes(bytes(15 * MIB))
        snapfs("backup", nights.image, nights.backups).refuses(1, "does not fit", "make room")
        assert nights.restored() == before
        filler.unlink()
        nights.back_up()
        assert nights.restored() == nights.image.read_bytes()
        assert nights.debris() <= {"lost+found"}
        nights.backups.unlink()
