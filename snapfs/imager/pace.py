"""How hard the imager works: bytes a second at most, and behind everybody else at the disk and the processor.

Source: ioprio_set(2) and the kernel's include/uapi/linux/ioprio.h; the C library has no function for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import time
from typing import Final

_SYSCALL_NO: Final = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282, "i686": 289}
_WHO_PROCESS: Final = 1
_CLASS_BEST_EFFORT: Final = 2
_CLASS_SHIFT: Final = 13
# The idle class would never get its turn beside a busy writer, and the snapshot would never end.
_LOWEST_LEVEL: Final = 7
_NICENESS: Final = 5
# So much may be read at once after a pause; less would make the rate depend on the size of requests.
_BURST_S: Final = 0.25


def yield_to_others() -> bool:
    """Give this thread, and those it starts, the lowest priority that still gets on. False where not permitted."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), _NICENESS))
    number = _SYSCALL_NO.get(platform.machine())
    if number is None:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    priority = _CLASS_BEST_EFFORT << _CLASS_SHIFT | _LOWEST_LEVEL
    return bool(libc.syscall(number, _WHO_PROCESS, 0, priority) == 0)


class Pace:
    """At most `bytes_per_s`; None is as fast as it goes."""

    def __init__(self, bytes_per_s: int | None) -> None:
        self._bytes_per_s = bytes_per_s
        self._due_s = time.monotonic()

    def wait_for(self, length: int) -> None:
        """Return when `length` bytes may be read."""
        if self._bytes_per_s is None:
            return
        now_s = time.monotonic()
        self._due_s = max(self._due_s, now_s - _BURST_S)
        if self._due_s > now_s:
            time.sleep(self._due_s - now_s)
        self._due_s += length / self._bytes_per_s
