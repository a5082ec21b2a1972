"""A raw backup that is brought up to date where it is, by the command or in this process, which may be killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nightly_rig import CELL, MIB, Nights, snapfs

from snapfs.commands.backup import backup
from snapfs.commands.checkpoints import ChainCheckpoints
from snapfs.commands.verify import VerifyOptions, verify
from snapfs.destination.consent import Consent
from snapfs.errors import BackupDamagedError
from snapfs.imager import target
from snapfs.imager.progress import silent
from snapfs.options import BackupOptions

# Of 3 extents.
SIZE = 40 * MIB
STEPS: tuple[tuple[Any, str], ...] = (
    (os, "fsync"),
    (os, "fdatasync"),
    (os, "rename"),
    (os, "unlink"),
    (target, "write_whole"),
    (target, "make_zeros"),
    (ChainCheckpoints, "hold"),
    (ChainCheckpoints, "let_go"),
)


def stay_before_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done in this process leaves its priority alone."""
    for command in ("backup", "verify"):
        monkeypatch.setattr(f"snapfs.commands.{command}.yield_to_others", lambda: True)


def with_sparse_image(nights: Nights) -> Nights:
    """Data in some cells of each extent."""
    nights.image.unlink()
    write_cells(nights.image, {number: os.urandom(CELL) for number in (0, 1, 2, 3, 256, 257, 258, 600, 601)})
    os.truncate(nights.image, SIZE)
    return nights


def write_cells(image: Path, cells: dict[int, bytes]) -> None:
    with image.open("r+b" if image.exists() else "wb") as file:
        for number, data in cells.items():
            file.seek(number * CELL)
            file.write(data)


def look_for_no_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks who else uses the files, which takes longer than all the rest."""
    monkeypatch.setattr("snapfs.destination.place.refuse_in_use", lambda *words: None)
    monkeypatch.setattr("snapfs.imager.image_source.check_image_unused", lambda *words: None)


def dest_of(nights: Nights) -> Path:
    return nights.path / "backup.img"


def updated(nights: Nights, *words: str | Path, source: Path | None = None) -> dict[str, Any]:
    """`snapfs backup --update`; what is said of it."""
    done = snapfs("backup", source or nights.image, dest_of(nights), "--update", "--json", *words).ok()
    made: dict[str, Any] = json.loads(done.out)
    return made


def update_here(nights: Nights, source: Path | None = None) -> None:
    """The same without another process."""
    backup(BackupOptions(source or nights.image, dest_of(nights), format="raw", update=True), silent, Consent())


def state_of(nights: Nights) -> str:
    """By what `snapfs verify` says."""
    try:
        verify(VerifyOptions(dest_of(nights)), silent, lambda sentence: None)
    except BackupDamagedError as error:
        return "half" if "is half brought up to date since" in error.sentence else error.sentence
    return "whole"


def killed_at(step: int, work: Callable[[], None]) -> bool:
    """Do the work in a process that is killed before this step; False when it has come to its end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            left = [step]
            for module, name in STEPS:
                setattr(module, name, _dying(getattr(module, name), left))
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def _dying(step: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def taken(*words: Any, **keywords: Any) -> Any:
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        return step(*words, **keywords)

    return taken


def debris(nights: Nights) -> set[str]:
    return {path.name for path in nights.path.iterdir() if path.name.startswith("backup.img")} - {
        "backup.img",
        "backup.img.json",
    }


def killed_before_the_manifest(work: Callable[[], None]) -> bool:
    """Killed when all is written to the backup."""

    def without_hold() -> None:
        ChainCheckpoints.hold = lambda self: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        work()

    return killed_at(1 << 30, without_hold)
