"""Calls the hooks of one event, in a process of its own.

It is a program (`python -m snapfs.events.runner DIRECTORY TIMEOUT_S LOG_FD`) that the supervisor starts; the facts
are in its environment. It holds nothing of the instance but its log, and is ended with SIGTERM, or with the
supervisor, and the hook with it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from snapfs.events.hooks import call_hooks
from snapfs.log import configure_log
from snapfs.stacks import dump_stacks_on_signal
from snapfs.system.processes import die_with_parent

_LOG = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    directory, timeout_s, log = arguments
    configure_log(int(log), "snapfs-events")
    dump_stacks_on_signal()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        die_with_parent(signal.SIGTERM)
        failures = call_hooks(Path(directory), os.environ, float(timeout_s))
    except KeyboardInterrupt:
        _LOG.warning("a hook was told of an event and had not ended when the instance did: it was killed")
        return
    for sentence in failures:
        _LOG.warning("%s", sentence)


if __name__ == "__main__":
    main(sys.argv[1:])
