"""Which module reads the map of which filesystem, by blkid's name of it.

A reader is loaded when a filesystem of its kind is found: one takes longer to load than most maps to be read.
"""

from __future__ import annotations

from importlib import import_module
from typing import Protocol

from snapfs.usedmap.result import FreeMap
from snapfs.usedmap.source import Source


class Reader(Protocol):
    """The contract of `read_free_map`: a map that is proven, or `MapError`."""

    def __call__(self, source: Source, *, frozen_by_us: bool = False) -> FreeMap: ...


def _reader(module: str) -> Reader:
    def read_free_map(source: Source, *, frozen_by_us: bool = False) -> FreeMap:
        read: Reader = import_module(f"snapfs.usedmap.{module}").read_free_map
        return read(source, frozen_by_us=frozen_by_us)

    return read_free_map


SWAP_KIND = "swap"

READERS: dict[str, Reader] = {
    "ext2": _reader("ext"),
    "ext3": _reader("ext"),
    "ext4": _reader("ext"),
    "xfs": _reader("xfs"),
    "btrfs": _reader("btrfs"),
    "ntfs": _reader("ntfs"),
    "vfat": _reader("fat"),
    "exfat": _reader("exfat"),
    SWAP_KIND: _reader("swap"),
}

# Kinds whose content is somebody else's business, with the sentence for status.
WHOLLY_USED_KINDS = {
    "bcache": "a device of bcache counts as used as a whole",
    "LVM2_member": "a volume of LVM counts as used as a whole",
    "crypto_LUKS": "an encrypted volume counts as used as a whole",
    "linux_raid_member": "a member of an MD array counts as used as a whole",
    "BitLocker": "an encrypted volume counts as used as a whole",
    "jbd": "the journal of a filesystem elsewhere counts as used as a whole",
    "swsuspend": "a hibernated system counts as used as a whole",
}
