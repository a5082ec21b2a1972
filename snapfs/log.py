"""The log: one line an event, from all processes of an instance into one file, or to stderr with `-f`.

A full or broken disk must not stop a server: a line that cannot be written is dropped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from cow import open_plain
from snapfs.shown import shown

_FORMAT = "%(asctime)s {name}[%(process)d] %(levelname)s %(message)s"
# Whose loggers say what is of use only to whoever looks for a fault; libraries that do so are not heard.
_OURS = ("snapfs", "cow")


class _OneLine(logging.Formatter):
    """A message is one line, whatever names are in it; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = shown(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """Indented: a line in it that somebody else wrote is none of the log's."""
        return "\n".join(f"  {shown(line)}" for line in super().formatException(ei).split("\n"))


def configure_log(where: Path | int | None, name: str, level: str = "info") -> None:
    """Log to the file `where` (appending, so that processes do not overwrite each other), to a descriptor, or to
    stderr without one; what is below `level` is not said."""
    logging.raiseExceptions = False
    handler = logging.StreamHandler(_stream(where))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    name_log(name)
    least = logging.getLevelNamesMapping()[level.upper()]
    root.setLevel(max(least, logging.INFO))
    for ours in _OURS:
        logging.getLogger(ours).setLevel(least)


def name_log(name: str) -> None:
    """What this process is called in the log from now on."""
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_OneLine(_FORMAT.format(name=name)))


def log_fd() -> int:
    """The descriptor that the log goes to; stderr's as long as none is configured."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            return int(handler.stream.fileno())
    return sys.stderr.fileno()


def say_at_once(message: str) -> None:
    """One line, past what `logging` and its files may be in the midst of: for a handler of signals."""
    record = logging.LogRecord(__name__, logging.INFO, __file__, 0, message, None, None)
    for handler in logging.getLogger().handlers:
        with contextlib.suppress(OSError):
            os.write(log_fd(), handler.format(record).encode(errors="backslashreplace") + b"\n")


def _stream(where: Path | int | None) -> TextIO:
    if where is None:
        # Not shared with whoever has stderr lead elsewhere for a while, or starts a program with another one.
        where = os.dup(sys.stderr.fileno())
    fd = where if isinstance(where, int) else _open_log(where)
    return open(fd, "a", encoding="utf-8", errors="backslashreplace")


def _open_log(path: Path) -> int:
    """As every file of the store: none that somebody else has prepared, and nobody else's to read."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    try:
        return open_plain(path, flags)
    except OSError:
        path.unlink(missing_ok=True)
        return open_plain(path, flags | os.O_EXCL)
