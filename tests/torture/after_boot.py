"""`snapfs` on a machine that was started anew. The first argument is the id of its boot, the second when that was, in
ns since 1970."""

from __future__ import annotations

import sys
import time

from snapfs.cli import main
from snapfs.commands import opening

_, BOOT_ID, BOOTED_NS, *WORDS = sys.argv
clock_gettime_ns = time.clock_gettime_ns


def since_boot(clock: int) -> int:
    """How long the machine has been up, by the clock that tells that."""
    return time.time_ns() - int(BOOTED_NS) if clock == time.CLOCK_BOOTTIME else clock_gettime_ns(clock)


opening.boot_id = lambda: BOOT_ID
time.clock_gettime_ns = since_boot
sys.argv = ["snapfs", *WORDS]
main()
