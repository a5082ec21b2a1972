"""`snapfs` whose mount is told to end in its last moments. The first argument: `before` the answer that both views
are there counts, or `after`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import snapfs.commands.mount as mount
from snapfs.startup import main
from snapfs.system.signals import Signals

hold, announced = Signals.hold, mount._announced


def hold_late(signals: Signals) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    hold(signals)


def announce_late(*words: Any) -> int:
    os.kill(os.getpid(), signal.SIGTERM)
    return announced(*words)


if sys.argv.pop(1) == "before":
    Signals.hold = hold_late  # type: ignore[method-assign]
else:
    mount._announced = announce_late
main()
