"""Filesystems of snapshots, looked at by their own checkers, which change nothing."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from mounted import run

from tests.machine import TIMEOUT_S

# What xfs_repair says of every frozen XFS: the kernel logs a last superblock while it freezes, and its count of
# free blocks leaves out what is reserved for its trees until it is unmounted (it is counted anew after that log).
_XFS_PROGRESS = re.compile(
    r"Phase |\s+- |No modify flag|Cannot get host|Repair may fail|the image and the host|sb_fdblocks \d+, counted"
    r"|ALERT: The filesystem has valuable|ignored because the -n|which may be resolved"
)


def assert_at_rest(fstype: str, file: Path) -> None:
    """The filesystem in this file is whole, and has no journal or log to recover."""
    _CHECKS[fstype](file)


def _ext4(file: Path) -> None:
    run("e2fsck", "-fn", file)
    assert "needs_recovery" not in run("dumpe2fs", "-h", file), f"the journal in {file} is to be recovered"


def _xfs(file: Path) -> None:
    words = ["xfs_repair", "-n", "-f", file]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    wrong = [line for line in (done.stdout + done.stderr).splitlines() if not _XFS_PROGRESS.match(line)]
    assert not wrong, f"xfs_repair of {file}: {wrong}"


def _btrfs(file: Path) -> None:
    run("btrfs", "check", "--readonly", file)
    found = run("btrfs", "inspect-internal", "dump-super", file)
    assert "log_root\t\t0\n" in found, f"the log in {file} is to be replayed"


_CHECKS: dict[str, Callable[[Path], None]] = {"ext4": _ext4, "xfs": _xfs, "btrfs": _btrfs}
