"""`snapfs backup --on-event DIR`: how it went is told, and nothing depends on who is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from nightly_rig import Nights, snapfs


@pytest.fixture
def hooks(nights: Nights) -> Path:
    """With one that notes what it is told."""
    directory = nights.path / "hooks"
    directory.mkdir()
    add(directory, "note", f'echo "$1" > {nights.path}/told; env | grep ^SNAPFS_ | sort >> {nights.path}/told')
    return directory


def add(directory: Path, name: str, text: str) -> None:
    hook = directory / name
    hook.write_text(f"#!/bin/sh\n{text}\n")
    hook.chmod(0o755)


def told(nights: Nights) -> tuple[str, dict[str, str]]:
    """The event and the facts of the last one."""
    event, *facts = (nights.path / "told").read_text().splitlines()
    return event, dict(line.split("=", 1) for line in facts)


def test_a_backup_that_is_done_is_told_with_what_it_is(nights: Nights, hooks: Path) -> None:
    made = nights.back_up("--on-event", hooks)
    event, facts = told(nights)
    assert float(facts.pop("SNAPFS_SECONDS")) >= 0
    assert event == "backup-done"
    assert facts == {
        "SNAPFS_BACKUP": made["backup"],
        "SNAPFS_DATA_BYTES": str(made["data_bytes"]),
        "SNAPFS_DEST": str(nights.backups),
        "SNAPFS_EVENT": "backup-done",
        "SNAPFS_SOURCE": str(nights.image),
        "SNAPFS_UNREAD_BYTES": "0",
    }


def test_one_that_failed_is_told_with_the_reason(nights: Nights, hooks: Path) -> None:
    done = snapfs("backup", nights.image, nights.path / "nowhere" / "b.img", "--on-event", hooks)
    event, facts = told(nights)
    assert (done.code, event) == (1, "backup-failed")
    assert done.err == f"snapfs: {facts['SNAPFS_MESSAGE']}\n"


def test_a_file_is_told_too(nights: Nights, hooks: Path) -> None:
    snapfs("backup", nights.image, nights.path / "b.img", "--on-event", hooks).ok()
    assert told(nights)[1]["SNAPFS_BACKUP"] == str(nights.path / "b.img")


def test_a_hook_that_fails_is_named_and_changes_nothing(nights: Nights, hooks: Path) -> None:
    add(hooks, "a", "exit 1")
    done = snapfs("backup", nights.image, nights.backups, "--on-event", hooks, "-q").ok()
    assert f"The hook {hooks / 'a'} failed with code 1 when it was told of backup-done" in done.err
    assert told(nights)[0] == "backup-done"
    assert len(nights.listed()) == 1


def test_without_such_a_directory_there_is_no_backup(nights: Nights) -> None:
    done = snapfs("backup", nights.image, nights.backups, "--on-event", nights.path / "nothing")
    assert (done.code, list(nights.backups.iterdir())) == (2, [])
    assert "cannot be found" in done.err


def test_an_interrupt_ends_the_hook_and_not_what_is_done(nights: Nights, hooks: Path) -> None:
    add(hooks, "a", "kill $PPID; exec sleep 1000")
    done = snapfs("backup", nights.image, nights.backups, "--on-event", hooks, "-q").ok()
    assert done.err == "snapfs: Interrupted while the hooks were told of backup-done: that was ended, nothing else.\n"
    assert len(nights.listed()) == 1


def test_an_interrupt_of_the_hook_hides_no_reason(nights: Nights, hooks: Path) -> None:
    add(hooks, "a", "kill $PPID; exec sleep 1000")
    done = snapfs("backup", nights.image, nights.path / "nowhere" / "b.img", "--on-event", hooks)
    assert done.code == 1
    assert "nowhere is no directory" in done.err
