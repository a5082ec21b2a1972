"""Which module reads the map of which filesystem, by blkid's name of it."""

from __future__ import annotations

from typing import Protocol

from snapfs.usedmap import btrfs, exfat, ext, fat, ntfs, swap, xfs
from snapfs.usedmap.result import FreeMap
from snapfs.usedmap.source import Source


class Reader(Protocol):
    """The contract of `read_free_map`: a map that is proven, or `MapError`."""

    def __call__(self, source: Source, *, frozen_by_us: bool = False) -> FreeMap: ...


SWAP_KIND = "swap"

READERS: dict[str, Reader] = {
    "ext2": ext.read_free_map,
    "ext3": ext.read_free_map,
    "ext4": ext.read_free_map,
    "xfs": xfs.read_free_map,
    "btrfs": btrfs.read_free_map,
    "ntfs": ntfs.read_free_map,
    "vfat": fat.read_free_map,
    "exfat": exfat.read_free_map,
    SWAP_KIND: swap.read_free_map,
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
