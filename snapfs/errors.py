"""What snapfs tells a user when something does not work.

Rules:
- One root. Whatever reaches the command line as a `SnapfsError` is printed as its sentence, without a
  traceback, and the process ends with its `exit_code`. Anything else is a bug of snapfs.
- `ExitCode` is the one table of exit codes: every command obeys it.
- The sentence names the thing, the reason and the way out.
- Facts that a program may want (a path, who holds it) are attributes, so that nobody takes a sentence apart.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import ClassVar


class ExitCode(IntEnum):
    """How every command ends."""

    DONE = 0
    FAILED = 1  # nothing was done, or it says what was
    USAGE = 2
    LOST = 3  # the snapshot, store or backup named is overflowed, lost or damaged
    PROBLEM = 4  # done, but for what is named
    INTERRUPTED = 130  # as a shell has it of a program that SIGINT ended
    BROKEN_PIPE = 141  # as a shell has it of a program that SIGPIPE ended


class SnapfsError(Exception):
    """It did not work; show `sentence` to the user. Nothing is left behind by whoever raises it."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED

    def __init__(self, sentence: str, *, path: Path | str | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.path = None if path is None else Path(path)


class UsageError(SnapfsError):
    """The command line asks for something that cannot be; the user must change it."""

    exit_code: ClassVar[ExitCode] = ExitCode.USAGE


class SnapshotLostError(SnapfsError):
    """The snapshot is overflowed, lost or damaged; the live data are whole, a new cut is the way on."""

    exit_code: ClassVar[ExitCode] = ExitCode.LOST


class StoreDamagedError(SnapfsError):
    """What says that a store is one is damaged or lost, and with it the snapshot: a new store is the way on."""

    exit_code: ClassVar[ExitCode] = ExitCode.LOST


class BackupDamagedError(SnapfsError):
    """The backup is not what was written: another copy is needed."""

    exit_code: ClassVar[ExitCode] = ExitCode.LOST


class DoneWithProblem(SnapfsError):
    """What was asked for was done, but something about it that `sentence` names is not as it should be."""

    exit_code: ClassVar[ExitCode] = ExitCode.PROBLEM


class InterruptedByUserError(SnapfsError):
    """The user ended it; the sentence says what is left, and how to go on."""

    exit_code: ClassVar[ExitCode] = ExitCode.INTERRUPTED


class ReaderGoneError(SnapfsError):
    """Whoever read the standard output has ended before all was written."""

    exit_code: ClassVar[ExitCode] = ExitCode.BROKEN_PIPE


class BusyError(SnapfsError):
    """Somebody else uses `path`; `holders` says who, one description each. Try again when they are gone."""

    def __init__(self, sentence: str, *, path: Path | str | None = None, holders: Sequence[str] = ()) -> None:
        super().__init__(sentence, path=path)
        self.holders = tuple(holders)


class NotMountedError(SnapfsError):
    """`path` is no mount point (any more); for a caller that wants it unmounted the work is done."""


class StoreGoneError(SnapfsError):
    """The views behind `path` are there, but their store, at `store`, was removed or its disk has failed: they go on
    and can be unmounted, nothing else. `what` says which, to follow "the store PATH"."""

    def __init__(self, sentence: str, *, path: Path | str, store: Path, what: str) -> None:
        super().__init__(sentence, path=path)
        self.store, self.what = store, what


class PermissionDeniedError(SnapfsError):
    """The operating system does not let this user do it; root or the owner can."""


def shortage(error: BaseException) -> str | None:
    """A sentence for an error that says no more than that a limit of this process is too low."""
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE):
        return "There may be no more open files; raise the limit (ulimit -n 1024) and try again."
    if number == errno.EAGAIN or "start new thread" in str(error):
        return "There may be no more processes or threads; raise the limits (ulimit -u, ulimit -v) and try again."
    if isinstance(error, MemoryError) or number == errno.ENOMEM or "llocate memory" in str(error):
        return "There is not enough memory; raise the limit (ulimit -v), or end other programs, and try again."
    if isinstance(error, ImportError):
        return f"A part of snapfs cannot be loaded ({error}); raise the limit (ulimit -v), or install it again."
    return None
