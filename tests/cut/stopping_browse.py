"""`snapfs browse` to which something happens when it has mounted the first filesystem of several.

The first argument says what: `killed` (SIGKILL), `interrupted` (SIGINT), `ended` (SIGTERM), or `failing`, where the
kernel has no second loop device.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Any

from snapfs.cli import main
from snapfs.commands import browse
from snapfs.system import attached

show_filesystem: Any = browse.show_filesystem
_, WHAT, *WORDS = sys.argv
SIGNALS = {"killed": signal.SIGKILL, "interrupted": signal.SIGINT, "ended": signal.SIGTERM}


def show_first(*arguments: Any) -> Any:
    shown = show_filesystem(*arguments)
    if WHAT in SIGNALS:
        os.kill(os.getpid(), SIGNALS[WHAT])
    attached._attach = no_device
    return shown


def no_device(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


browse.show_filesystem = show_first
sys.argv = ["snapfs", *WORDS]
main()
