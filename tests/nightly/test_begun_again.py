"""A backup that is begun again in the place of an interrupted one, and is killed as well: what is gone on with is
what the journal tells of."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
from imager_rig import running
from nightly_rig import MIB, Nights, snapfs

MOST = 60


def test_killed_at_every_step_the_older_one_is_gone_on_with_or_nothing_is(nights: Nights) -> None:
    nights.image.write_bytes(os.urandom(40 * MIB))
    dest, kept = nights.path / "dest", nights.path / "kept"
    dest.mkdir()
    backup = dest / "backup"
    with running("backup", nights.image, backup, "--rate", "16M") as process:
        process.await_bytes(20 * MIB)
        process.interrupt()
        process.wait().refuses(130, "--resume goes on")
    shutil.copytree(dest, kept)
    resumed = 0
    for step in range(MOST):
        shutil.rmtree(dest)
        shutil.copytree(kept, dest)
        ended = snapfs("backup", nights.image, backup, "--force", die_before=step)
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended.err
        if backup.exists() and (dest / "backup.json").exists():
            continue
        done = snapfs("backup", nights.image, backup, "--resume")
        if done.code:
            snapfs("backup", nights.image, backup, "--force").ok()
        else:
            resumed += 1
        assert backup.read_bytes() == nights.image.read_bytes(), step
        snapfs("verify", backup).ok()
    assert ended.code == 0
    assert resumed


@pytest.mark.parametrize("words", [(), ("--format", "qcow2"), ("--format", "qcow2", "--compress"), None], ids=str)
def test_killed_at_every_step_it_is_gone_on_with_or_there_is_nothing(
    nights: Nights, words: tuple[str, ...] | None
) -> None:
    """None: a backup of a directory."""
    dest = nights.path / "dest"
    backup = dest if words is None else dest / "backup"
    for step in range(MOST):
        shutil.rmtree(dest, ignore_errors=True)
        dest.mkdir()
        ended = snapfs("backup", nights.image, backup, *(words or ()), die_before=step)
        if ended.code == 0:
            break
        assert ended.code == -signal.SIGKILL, ended.err
        done = snapfs("backup", nights.image, backup, *(words or ()), "--resume")
        if done.code:
            assert done.code == 1, done.err
            snapfs("backup", nights.image, backup, *(words or ()), "--force").ok()
        restored = nights.path / "restored.img"
        restored.unlink(missing_ok=True)
        snapfs("restore", backup, restored).ok()
        assert restored.read_bytes() == nights.image.read_bytes(), step
    assert ended.code == 0
