"""What a qcow2 that comes from outside may ask of QEMU: nothing but itself.

Source: QEMU's docs/interop/qcow2.txt, "Header".

A header can name a backing file and an external data file, by path or as a network address, and QEMU opens them
as whoever runs it. What snapfs writes names neither, and a file that does is not what was written. (An internal
snapshot or a bitmap inside changes nothing of what is read.)
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
# dirty, corrupt, compression type, extended L2 entries
_KNOWN: Final = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4


def check_stands_alone(fd: int, path: Path) -> None:
    """BackupDamagedError unless the open file is a qcow2 that needs no other file, and no key."""
    reason = _why_not(os.pread(fd, _INCOMPATIBLE_OFFSET + _INCOMPATIBLE.size, 0))
    if reason:
        raise BackupDamagedError(
            f"{path} {reason}, so it is not the qcow2 that snapfs wrote, and is not opened; take another copy.",
            path=path,
        )


def _why_not(head: bytes) -> str:
    if len(head) < _INCOMPATIBLE_OFFSET or not head.startswith(_MAGIC):
        return "is no qcow2"
    _, version, backing_offset, backing_bytes, _, _, crypt_method = _HEADER.unpack_from(head)
    if version not in (2, 3):
        return f"is a qcow2 of version {version}"
    if backing_offset or backing_bytes:
        return "has a backing file"
    if crypt_method:
        return "is encrypted"
    features = _INCOMPATIBLE.unpack_from(head, _INCOMPATIBLE_OFFSET)[0] if version == 3 else 0
    if features & _EXTERNAL_DATA:
        return "has its data in another file"
    return "has features that are not known" if features & ~_KNOWN else ""
