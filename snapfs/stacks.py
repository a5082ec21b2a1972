"""What a process is at, on a signal: the stacks of its threads, and what each task of its event loop waits for.

    kill -USR2 PID    writes both to the log, and nothing else happens

Rules:
- The stacks are looked at by Python code, which holds the interpreter's lock. `faulthandler.register` looks at once,
  in the midst of whatever runs, and to read the frames of a thread that goes on has ended a process after some ten
  thousand times. The price: a main thread that does not come back from the kernel, or from C code that keeps the
  lock, says nothing.
- A program that the live server starts (`mapper`, `syncer`) answers from when it has loaded what it needs; in the
  quarter of a second before that the signal ends it, and the cut has no map.
- Nothing is said through `logging`, which the signal may have interrupted; what cannot be written is dropped.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType
from typing import Any, Final

from snapfs.log import log_fd, say_at_once

STACKS_SIGNAL: Final = signal.SIGUSR2


def dump_stacks_on_signal() -> None:
    """From now on, here and in every process that is forked from this one; in the main thread."""
    signal.signal(STACKS_SIGNAL, _on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    # Whatever goes wrong here must not reach what was interrupted.
    with suppress(Exception):
        say_at_once("the stacks of its threads and tasks, the latest call first:")
        faulthandler.dump_traceback(log_fd(), all_threads=True)
        text = "".join(f"{line}\n" for line in _tasks())
        os.write(log_fd(), text.encode(errors="backslashreplace"))


def _tasks() -> Iterator[str]:
    """All tasks of the event loop of this thread, each below the one that has its nursery."""
    # A process that has no event loop has not loaded it either.
    trio = sys.modules.get("trio")
    if trio is None:
        return
    try:
        root = trio.lowlevel.current_root_task()
    except RuntimeError:
        return
    yield from _task(root, "")


def _task(task: Any, indent: str) -> Iterator[str]:
    yield f"{indent}Task {task.name}"
    yield from (f"{indent}  {line}" for line in reversed(list(_calls(task.coro))))
    for nursery in task.child_nurseries:
        for child in sorted(nursery.child_tasks, key=lambda one: str(one.name)):
            yield from _task(child, indent + "  ")


def _calls(coroutine: Any) -> Iterator[str]:
    """From the outermost on, as far as can be seen: of compiled coroutines only their names."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if isinstance(frame, FrameType):
            yield f'File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_qualname}'
        else:
            yield f"in {getattr(coroutine, '__qualname__', type(coroutine).__name__)}"
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
