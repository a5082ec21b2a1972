"""`snapfs` that is killed just before its N-th step that another process could see the result of: a name that is
given or removed, something that becomes durable, a file that is made. The first argument is N, from 0 on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from snapfs.cli import main
from snapfs.system import libc

STEPS = (
    (os, "fsync"),
    (os, "fdatasync"),
    (os, "rename"),
    (os, "unlink"),
    (os, "fchmod"),
    (libc, "rename_new"),
)
_, LAST, *WORDS = sys.argv
left = int(LAST)


def dying(step: Callable[..., Any]) -> Callable[..., Any]:
    def taken(*words: Any, **keywords: Any) -> Any:
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return step(*words, **keywords)

    return taken


for module, name in STEPS:
    setattr(module, name, dying(getattr(module, name)))
sys.argv = ["snapfs", *WORDS]
main()
