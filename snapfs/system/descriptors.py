"""An open file by its descriptor: a path that leads to this very file, and the name that it has now.

Source: proc(5), /proc/pid/fd.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

_PATH: Final = re.compile(r"/proc/self/fd/([0-9]+)")
# What the kernel adds to the name of a file that has none any more.
DELETED: Final = " (deleted)"


def path_of(fd: int) -> Path:
    """Leads to the open file, whatever has its name by now; in children that have inherited `fd`, too."""
    return Path(f"/proc/self/fd/{fd}")


def descriptor_in(path: Path) -> int | None:
    """The descriptor in a path of `path_of`; None for any other."""
    found = _PATH.fullmatch(str(path))
    return None if found is None else int(found[1])


def last_name(fd: int) -> Path:
    """Where the file is now; of one that was deleted, where it was."""
    return Path(os.readlink(path_of(fd)).removesuffix(DELETED))


def present_name(fd: int) -> Path | None:
    """Where the file is now; None when that cannot be told, or it was deleted."""
    try:
        name = os.readlink(path_of(fd))
    except OSError:
        return None
    return None if name.endswith(DELETED) or not name.startswith("/") else Path(name)
