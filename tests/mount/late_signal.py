"""`snapfs` whose mount is told to end. The first argument says when: `twice` (when the store is made, and again while
that is undone), `before` the answer that both views are there counts, `after` it, or at the very `end`. `killed`: the
daemon is, when both views answer, or `killed later`, when it has noted that and is about to say so."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path
from typing import Any

import snapfs.commands.daemon as daemon
import snapfs.commands.mount as mount
from snapfs.startup import main
from snapfs.system.signals import Signals

describe, remove, hold, announced = mount._describe, mount.remove_held, Signals.hold, mount._announced
await_views, detach = daemon._await_views, daemon.detach_streams
moment = sys.argv.pop(1)


def describe_late(*words: Any) -> mount.Mounted:
    os.kill(os.getpid(), signal.SIGTERM)
    return describe(*words)


def remove_late(store: Path) -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    remove(store)


def hold_late(signals: Signals) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    hold(signals)


def announce_late(*words: Any) -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    return announced(*words)


def end_late() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def await_and_be_killed(instance: mount.Instance) -> None:
    await_views(instance)
    os.kill(os.getpid(), signal.SIGKILL)


def detach_and_be_killed(*, stderr_too: bool = True) -> None:
    detach(stderr_too=stderr_too)
    if stderr_too:
        os.kill(os.getpid(), signal.SIGKILL)


match moment:
    case "twice":
        mount._describe, mount.remove_held = describe_late, remove_late
    case "before":
        Signals.hold = hold_late  # type: ignore[method-assign]
    case "after":
        mount._announced = announce_late
    case "killed":
        daemon._await_views = await_and_be_killed
    case "killed later":
        daemon.detach_streams = detach_and_be_killed
    case "end":
        atexit.register(end_late)
main()
