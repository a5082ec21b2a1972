"""Whose turn it is in a directory of backups: one that changes it, or any number that read it.

The lock is on the directory itself (flock), so it goes with its holder, and leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from snapfs.destination.write_errors import write_errors
from snapfs.errors import BusyError
from snapfs.system.browses import BROWSE_SOURCE
from snapfs.system.image_lock import lock_holders
from snapfs.system.open_files import describe

_NO_LOCKS: Final = (errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)

_END_BROWSE: Final = ", or have it (snapfs browse --end)"


class Turn:
    """The directory, open as `fd` and locked."""

    def __init__(self, directory: Path, *, changes: bool) -> None:
        """BusyError: somebody else has it, and who."""
        self.directory = directory
        with write_errors(str(directory), "try again"):
            self.fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._lock(fcntl.LOCK_EX if changes else fcntl.LOCK_SH)
        except BaseException:
            os.close(self.fd)
            raise

    def may_change(self) -> bool:
        """From reading to changing; False when somebody else reads. What was read may have changed meanwhile."""
        try:
            self._lock(fcntl.LOCK_EX)
        except BusyError:
            return False
        return True

    def _lock(self, operation: int) -> None:
        try:
            fcntl.flock(self.fd, operation | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holders = lock_holders(self.fd)
            who = describe(holders) or "another command has locked it"
            is_browsed = any(BROWSE_SOURCE in holder.description for holder in holders)
            raise BusyError(
                f"{self.directory} is in use: {who}; wait for its end{_END_BROWSE if is_browsed else ''}.",
                path=self.directory,
                holders=[holder.description for holder in holders],
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise

    def close(self) -> None:
        os.close(self.fd)


@contextlib.contextmanager
def turn(directory: Path, *, changes: bool) -> Iterator[Turn]:
    """The turn until the end of the block."""
    held = Turn(directory, changes=changes)
    try:
        yield held
    finally:
        held.close()
