"""What the operating system says when a result cannot be written, as sentences."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from snapfs.errors import PermissionDeniedError, SnapfsError


@contextlib.contextmanager
def write_errors(name: str, way_out: str) -> Iterator[None]:
    """What the operating system refuses, as sentences."""
    try:
        yield
    except OSError as error:
        raise _as_sentence(error, name, way_out) from error


def _as_sentence(error: OSError, name: str, way_out: str) -> SnapfsError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SnapfsError(f"{name} does not fit: {error.strerror}; make room, then {way_out}.", path=name)
    if error.errno == errno.EFBIG:
        return SnapfsError(f"{name} is too large a file for its filesystem; write elsewhere.", path=name)
    if error.errno in (errno.ENOENT, errno.ESTALE):
        return vanished(name)
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDeniedError(
            f"{name} may not be written by this user; name a place of your own, or run as its owner.", path=name
        )
    if error.errno == errno.EROFS:
        return SnapfsError(f"{name} is on a read-only filesystem; write elsewhere.", path=name)
    if error.errno == errno.ENAMETOOLONG:
        return SnapfsError(f"{name} is too long a name; give a shorter one.", path=name)
    return SnapfsError(
        f"{name} cannot be written: {error.strerror}; check the disk it is on, then {way_out}.", path=name
    )


def vanished(name: str) -> SnapfsError:
    """The file was removed or renamed by somebody else."""
    return SnapfsError(f"{name} has vanished while it was written; see who removed it, and begin again.", path=name)
