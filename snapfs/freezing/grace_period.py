"""Short grace periods: the kernel's RCU told not to take its time.

Source: Documentation/admin-guide/kernel-parameters (rcu_expedited, rcu_normal) and percpu_down_write in the
kernel's kernel/locking/percpu-rwsem.c.

A freeze takes three locks that each wait for a grace period of RCU: 10 to 15 ms each on an idle machine, most of
it with the writers already stopped. Told to expedite, a freeze without anything to write takes about 1 ms. The
price is an interrupt on every processor for each grace period, so it is asked for only around the freeze. Where
the administrator has chosen (rcu_normal, or expedited for good), or this user may not, nothing is changed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_EXPEDITED: Final = Path("/sys/kernel/rcu_expedited")


class GracePeriods:
    """Opened before the freeze, so that nothing has to be opened inside it."""

    def __init__(self) -> None:
        self._fd = -1
        with suppress(OSError):
            fd = os.open(_EXPEDITED, os.O_RDWR | os.O_CLOEXEC)
            if os.pread(fd, 8, 0).strip() == b"0":
                self._fd = fd
            else:
                os.close(fd)

    def shorten(self) -> None:
        self._write(b"1")

    def thaw(self) -> bool:
        """As before again; for the watchdog this is one more thing to thaw."""
        self._write(b"0")
        return True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, value: bytes) -> None:
        if self._fd >= 0:
            with suppress(OSError):
                os.pwrite(self._fd, value, 0)
