"""The note of a revert: from its first write on until the image is the target's, and on the disk.

As long as it is there the image is partly of the target's instant and partly of a later one. It is written whole and
flushed before the first of these writes, and goes after the image is flushed, so that no kill and no power loss
leaves such an image without it.
"""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path
from typing import Final

from cow.disk.codec import checksum
from cow.disk.directory import REVERTING_NAME
from cow.disk.files import Files
from cow.disk.layout import REVERT_MAGIC, REVERT_NOTE
from cow.disk.plain import read_plain

# Of no snapshot: the note is damaged, and nobody knows its target any more.
UNKNOWN_TARGET: Final = bytes(16)


def encode_note(snapshot_id: bytes) -> bytes:
    return REVERT_NOTE.pack(REVERT_MAGIC, snapshot_id, checksum(REVERT_MAGIC + snapshot_id))


def decode_note(data: bytes) -> bytes:
    """Inverse of `encode_note`; UNKNOWN_TARGET for anything else."""
    with contextlib.suppress(struct.error):
        magic, snapshot_id, digest = REVERT_NOTE.unpack(data)
        if magic == REVERT_MAGIC and digest == checksum(REVERT_MAGIC + snapshot_id):
            return bytes(snapshot_id)
    return UNKNOWN_TARGET


def read_revert_note(store: Path) -> bytes | None:
    """The id of the snapshot that the image is being reverted to; None when it is not. A note that cannot be read is
    one, of UNKNOWN_TARGET."""
    try:
        return decode_note(read_plain(store / REVERTING_NAME))
    except FileNotFoundError:
        return None
    except OSError:
        return UNKNOWN_TARGET


def write_revert_note(store: Path, snapshot_id: bytes, files: Files) -> None:
    """On the disk when this returns; replaces the note of a revert to another one. OSError: there is the one that
    was, or (when only the flush of its directory failed) this."""
    files.write_whole(store / REVERTING_NAME, encode_note(snapshot_id))


def remove_revert_note(store: Path, files: Files) -> None:
    """The image is one again, and on the disk."""
    (store / REVERTING_NAME).unlink(missing_ok=True)
    files.sync_directory(store)
