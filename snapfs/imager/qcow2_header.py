"""What a qcow2 that comes from outside may ask of QEMU: nothing but itself, or the one file that is known beforehand.

Source: QEMU's docs/interop/qcow2.txt, "Header".

A header can name a backing file and an external data file, by path or as a network address, and QEMU opens them
as whoever runs it. What snapfs writes names neither, or as its backing file exactly the backup that its own facts
say; a file that names another is not what was written. (An internal snapshot or a bitmap inside changes nothing of
what is read.)
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final

from snapfs.errors import BackupDamagedError

_MAGIC: Final = b"QFI\xfb"
# magic, version, backing_file_offset, backing_file_size, cluster_bits, size, crypt_method
_HEADER: Final = struct.Struct(">4sIQIIQI")
_INCOMPATIBLE: Final = struct.Struct(">Q")
_INCOMPATIBLE_OFFSET: Final = 72
_EXTERNAL_DATA: Final = 1 << 2
# By the specification.
_MAX_NAME_BYTES: Final = 1023
# dirty, corrupt, compression type, extended L2 entries
_KNOWN: Final = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4


def check_header(fd: int, path: Path, backing: str | None = None) -> None:
    """BackupDamagedError unless the open file is a qcow2 that needs no other file but `backing`, and no key."""
    head = os.pread(fd, _INCOMPATIBLE_OFFSET + _INCOMPATIBLE.size, 0)
    reason = _why_not(head)
    if not reason and (named := _backing_name(fd, head)) != os.fsencode(backing or ""):
        is_named = "has a backing file" if backing is None else "has not the backing file that it should have"
        reason = is_named if named else "has no backing file"
    if reason:
        raise BackupDamagedError(
            f"{path} {reason}, so it is not the qcow2 that snapfs wrote, and is not opened; take another copy.",
            path=path,
        )


def _why_not(head: bytes) -> str:
    if len(head) < _INCOMPATIBLE_OFFSET or not head.startswith(_MAGIC):
        return "is no qcow2"
    _, version, _, _, _, _, crypt_method = _HEADER.unpack_from(head)
    if version not in (2, 3):
        return f"is a qcow2 of version {version}"
    if crypt_method:
        return "is encrypted"
    features = _INCOMPATIBLE.unpack_from(head, _INCOMPATIBLE_OFFSET)[0] if version == 3 else 0
    if features & _EXTERNAL_DATA:
        return "has its data in another file"
    return "has features that are not known" if features & ~_KNOWN else ""


def _backing_name(fd: int, head: bytes) -> bytes:
    """As the header has it; a name that cannot be one is not equal to any."""
    _, _, offset, length, _, _, _ = _HEADER.unpack_from(head)
    if not offset and not length:
        return b""
    name = os.pread(fd, min(length, _MAX_NAME_BYTES), offset)
    return name if 0 < length <= _MAX_NAME_BYTES and len(name) == length else b"\0"
