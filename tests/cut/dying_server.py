"""`snapfs` of which one process kills itself, once, at a change of a name: the servers inherit what is set here.

`dying_server.py ARMED SERVER WHEN CALL NAME WORD ...`: the first process called snapfs-SERVER that is before or
after (WHEN) a CALL of the module os for a path that contains NAME, while the file ARMED is there, takes that file
away and ends by SIGKILL. The rest is what snapfs is called with.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from snapfs.startup import main

_, ARMED, SERVER, WHEN, CALL, NAME, *WORDS = sys.argv
call, unlink = getattr(os, CALL), os.unlink


def die() -> None:
    if Path("/proc/self/comm").read_text() == f"snapfs-{SERVER}"[:15] + "\n" and os.path.exists(ARMED):
        unlink(ARMED)
        os.kill(os.getpid(), signal.SIGKILL)


def watched(path: Any, *more: Any, **named: Any) -> Any:
    is_meant = NAME in os.fspath(path)
    if is_meant and WHEN == "before":
        die()
    done = call(path, *more, **named)
    if is_meant and WHEN == "after":
        die()
    return done


setattr(os, CALL, watched)
sys.argv = ["snapfs", *WORDS]
main()
