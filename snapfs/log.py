"""The log: one line an event, from all processes of an instance into one file, or to stderr with ``-f``.

A full or broken disk must not stop a server: a line that cannot be written is dropped.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from cow import open_plain
from snapfs.shown import shown

_FORMAT = "%(asctime)s %(processName)s[%(process)d] %(levelname)s %(message)s"


class _OneLine(logging.Formatter):
    """A message is one line, whatever names are in it; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = shown(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """Indented: a line in it that somebody else wrote is none of the log's."""
        return "\n".join(f"  {shown(line)}" for line in super().formatException(ei).split("\n"))


def configure_log(path: Path | None, name: str) -> None:
    """Log to ``path`` (appending, so that processes do not overwrite each other), or to stderr without one."""
    logging.raiseExceptions = False
    handler = logging.StreamHandler(sys.stderr if path is None else _log_file(path))
    handler.setFormatter(_OneLine(_FORMAT.replace("%(processName)s", name)))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def _log_file(path: Path) -> TextIO:
    """As every file of the store: none that somebody else has prepared, and nobody else's to read."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    try:
        fd = open_plain(path, flags)
    except OSError:
        path.unlink(missing_ok=True)
        fd = open_plain(path, flags | os.O_EXCL)
    return open(fd, "a", encoding="utf-8", errors="backslashreplace")
