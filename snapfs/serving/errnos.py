"""The one table from the engine's errors to what a request to a view fails with."""

from __future__ import annotations

import errno

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
    """The errno for `error`; EIO for what should not happen."""
    if isinstance(error, BufferFull):
        return error.errno
    if isinstance(error, OSError):
        return error.errno or errno.EIO
    return next((code for kind, code in _ERRNOS.items() if isinstance(error, kind)), errno.EIO)
