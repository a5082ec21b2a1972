"""Text of the kernel, from /proc and /sys, taken apart as the kernel put it together.

Source: seq_file(9) and proc(5): names are escaped as a backslash and three octal digits.

Rules:
- By bytes. A name may hold every byte but zero and the slash; to decode first, or to let Python split at whatever
  it takes for the end of a line (a carriage return, a form feed, U+0085), makes two lines of one, and whoever may
  name a file or mount a filesystem could so write lines of his own.
- A line ends at a newline and nowhere else: the kernel escapes those inside names, or the file has only one line.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

_OCTAL: Final = re.compile(rb"\\([0-7]{3})")
# Most files fit, and are read by one call and another that finds their end.
_PIECE_BYTES: Final = 1 << 16


def kernel_lines(path: Path | str) -> list[bytes]:
    """The lines of a file of many lines, without their ends; OSError as open(2) and read(2) give it."""
    lines = _content(path).split(b"\n")
    return lines if lines[-1] else lines[:-1]


def kernel_value(path: Path | str) -> bytes:
    """What a file of one value says: all but its final newline, whatever else is in it. OSError as above."""
    return _content(path).removesuffix(b"\n")


def _content(path: Path | str) -> bytes:
    """Without a file object: thousands are read to find out who uses a mount, one for each open file there is."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(fd, _PIECE_BYTES), b""))
    finally:
        os.close(fd)


def kernel_name(escaped: bytes) -> str:
    """A name without the kernel's escapes, as the functions of `os` take it."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), escaped))
