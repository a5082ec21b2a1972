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


def die_before(step: int) -> None:
    left = step

    def dying(taken: Callable[..., Any]) -> Callable[..., Any]:
        def take(*words: Any, **keywords: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return taken(*words, **keywords)

        return take

    for module, name in STEPS:
        setattr(module, name, dying(getattr(module, name)))


if __name__ == "__main__":
    _, last, *words = sys.argv
    die_before(int(last))
    sys.argv = ["snapfs", *words]
    main()
