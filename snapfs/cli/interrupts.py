"""Being told to end: a command that tidies up after Ctrl-C does so after SIGTERM and a closed terminal too."""

from __future__ import annotations

import signal


def end_as_interrupted() -> None:
    """From now on SIGTERM and SIGHUP raise KeyboardInterrupt."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
