"""What became of the image's file while it is used: somebody may delete, replace, cut or lengthen it any time.

    in-place    the file that was opened, with the size it had; perhaps under another name
    deleted     it has no name any more: what it holds goes when the last process closes it
    replaced    the same, and another file has its name now
    truncated   it is shorter than it was, or was so at some time: what lay past its end is gone
    grown       it is longer than it was: nobody sees what is past its old end

Of two the worse counts: without a name everything is at stake.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from snapfs.system.block_ioctl import size_bytes_of

IN_PLACE: Final = "in-place"
DELETED: Final = "deleted"
REPLACED: Final = "replaced"
TRUNCATED: Final = "truncated"
GROWN: Final = "grown"
WITHOUT_NAME: Final = frozenset({DELETED, REPLACED})


def image_state(fd: int, path: Path, size_bytes: int, shortest_bytes: int) -> str:
    """One of the words above, of the image that was opened as `path` with `size_bytes` and is open as `fd`."""
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and not status.st_nlink:
        return REPLACED if os.path.lexists(path) else DELETED
    present_bytes = size_bytes_of(fd)
    if min(present_bytes, shortest_bytes) < size_bytes:
        return TRUNCATED
    return GROWN if present_bytes > size_bytes else IN_PLACE


_WHAT: Final = {
    DELETED: "was deleted",
    REPLACED: "was replaced by another file",
    TRUNCATED: "was cut short",
    GROWN: "has grown",
}
_MEANS: Final = {
    DELETED: "its content is in the live view alone, and ends with it",
    REPLACED: "its old content is in the live view alone, and ends with it",
    TRUNCATED: "what lay past its end is gone, and can be neither read nor written",
    GROWN: "what is past its old end is in neither view",
}
_MEANT: Final = {
    DELETED: "its content is gone; restore it from a backup",
    REPLACED: "its old content is gone; restore it from a backup",
    TRUNCATED: "what lay past its end is gone; restore it from a backup",
    GROWN: "what is past its old end was in neither view; mount it again if that belongs to it",
}


def describe_image_state(state: str, path: str) -> str:
    """What is the matter while it is mounted, for people; "" when nothing is."""
    return "" if state == IN_PLACE else f"{path} {_WHAT[state]}: {_MEANS[state]}"


def describe_image_end(state: str, path: str) -> str:
    """The same as a sentence, once it is unmounted."""
    return "" if state == IN_PLACE else f"{path} {_WHAT[state]} while it was mounted, and {_MEANT[state]}."
