"""The one table from the engine's errors to what a system call on a view returns."""

from __future__ import annotations

import errno

import pyfuse3

from cow import BlockReleased, BufferFull, CowError, Damaged, EngineClosed, OutOfRange, SnapshotEnded, SnapshotLost

_ERRNOS: dict[type[CowError], int] = {
    OutOfRange: errno.EINVAL,
    Damaged: errno.EIO,
    SnapshotLost: errno.EIO,
    SnapshotEnded: errno.ESTALE,
    BlockReleased: errno.ENODATA,
    EngineClosed: errno.EIO,
}


def errno_of(error: Exception) -> int:
    """The errno for ``error``; EIO for what should not happen."""
    if isinstance(error, BufferFull):
        return error.errno
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    return next((code for kind, code in _ERRNOS.items() if isinstance(error, kind)), errno.EIO)


def fuse_error(error: Exception) -> pyfuse3.FUSEError:
    """What a request handler raises instead of ``error``."""
    if isinstance(error, pyfuse3.FUSEError):
        return error
    return pyfuse3.FUSEError(errno_of(error))
