"""The map file of GNU ddrescue beside a backup, DEST.map: with it ddrescue goes on where snapfs gave up.

Source: "Mapfile structure" of the GNU ddrescue manual, version 1.23 and later. What is free counts as finished there:
it is zeros in the backup, and nobody should read it again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from snapfs.errors import SnapfsError
from snapfs.imager.unread import Ranges
from snapfs.system.file_kinds import open_readable

_FIRST_LINE: Final = "# Mapfile. Created by snapfs"
_FINISHED, _BAD_SECTOR = "+", "-"


def rescue_map_path(backup: Path) -> Path:
    """Where the map of `backup` is."""
    return backup.with_name(backup.name + ".map")


def rescue_map(image_bytes: int, unread: Ranges, source: Path) -> str:
    """The text of the map; `source` is what ddrescue is to read."""
    lines = [_FIRST_LINE, f"# Of {_printable(source)}", "# current_pos  current_status  current_pass"]
    lines += [f"0x{image_bytes:08X}  {_FINISHED}  1", "#      pos        size  status"]
    lines += [f"0x{offset:08X}  0x{length:08X}  {status}" for offset, length, status in _blocks(image_bytes, unread)]
    return "\n".join(lines) + "\n"


def is_rescue_map(path: Path) -> bool:
    """Whether snapfs has written the file."""
    try:
        fd = open_readable(path, "")
    except (OSError, SnapfsError):
        return False
    try:
        return os.pread(fd, len(_FIRST_LINE), 0) == _FIRST_LINE.encode()
    except OSError:
        return False
    finally:
        os.close(fd)


def _blocks(image_bytes: int, unread: Ranges) -> Iterator[tuple[int, int, str]]:
    """All of the image, in order: ddrescue takes no map with gaps."""
    at = 0
    for offset, length in unread:
        if offset > at:
            yield at, offset - at, _FINISHED
        yield offset, length, _BAD_SECTOR
        at = offset + length
    if at < image_bytes:
        yield at, image_bytes - at, _FINISHED


def _printable(path: Path) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in str(path))
