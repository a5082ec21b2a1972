"""Waiting for a lock of flock(2), which the kernel tells nobody of in time."""

from __future__ import annotations

import fcntl
import time
from typing import Final

_LOOK_S: Final = 0.01


def lock_in_time(fd: int, operation: int, timeout_s: float) -> bool:
    """Whether the lock (LOCK_SH or LOCK_EX) on what is open as `fd` came in time; then it is ours."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
        time.sleep(_LOOK_S)
