"""The log: one line an event, from all processes of an instance into one file, or to stderr with ``-f``.

A full or broken disk must not stop a server: a line that cannot be written is dropped.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

_FORMAT = "%(asctime)s %(processName)s[%(process)d] %(levelname)s %(message)s"


def configure_log(path: Path | None, name: str) -> None:
    """Log to ``path`` (appending, so that processes do not overwrite each other), or to stderr without one."""
    logging.raiseExceptions = False
    handler: logging.Handler = logging.StreamHandler(sys.stderr) if path is None else logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(_FORMAT.replace("%(processName)s", name)))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)
