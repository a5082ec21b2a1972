"""What snapfs tells a user when something does not work.

Rules:
- One root. Whatever reaches the command line as a `SnapfsError` is printed as its sentence, without a
  traceback, and the process ends with its `exit_code`. Anything else is a bug of snapfs.
- The sentence names the thing, the reason and the way out.
- Facts that a program may want (a path, who holds it) are attributes, so that nobody takes a sentence apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar


class SnapfsError(Exception):
    """It did not work; show `sentence` to the user. Nothing is left behind by whoever raises it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, sentence: str, *, path: Path | str | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.path = None if path is None else Path(path)


class UsageError(SnapfsError):
    """The command line asks for something that cannot be; the user must change it."""

    exit_code: ClassVar[int] = 2


class SnapshotLostError(SnapfsError):
    """The snapshot is overflowed, lost or damaged; the live data are whole, a new cut is the way on."""

    exit_code: ClassVar[int] = 3


class BusyError(SnapfsError):
    """Somebody else uses `path`; `holders` says who, one description each. Try again when they are gone."""

    def __init__(self, sentence: str, *, path: Path | str | None = None, holders: Sequence[str] = ()) -> None:
        super().__init__(sentence, path=path)
        self.holders = tuple(holders)


class NotMountedError(SnapfsError):
    """`path` is no mount point (any more); for a caller that wants it unmounted the work is done."""


class PermissionDeniedError(SnapfsError):
    """The operating system does not let this user do it; root or the owner can."""
