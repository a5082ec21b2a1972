"""Whether the file or the disk that is there still is the backup that its manifest tells of, without reading it all.

    file    by size, and by the times and the inode that the manifest has
    disk    by its identity, where it has one, and by the first extent that nobody has written to since

What an interrupted update has written is no change: it is listed in DEST.update (`half_way`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from blake3 import blake3

from snapfs.destination.pair import is_same
from snapfs.imager.half_way import HalfWay
from snapfs.imager.manifest import Manifest
from snapfs.imager.results import Places
from snapfs.imager.unread import Ranges
from snapfs.system.device_identity import device_identity
from snapfs.whole import read_at_most


@dataclass(frozen=True)
class Doubt:
    """`why` nobody knows what is there. `needs_consent`: it may be something else altogether, and is overwritten only
    if the user agrees."""

    why: str
    needs_consent: bool


def doubt_about(places: Places, fd: int, manifest: Manifest, half: HalfWay | None) -> Doubt | None:
    """None: what is there is what the manifest says, but for what `half` lists. `fd` is what is there."""
    dest, status = places.dest, os.fstat(fd)
    assert dest is not None
    assert places.manifest is not None
    if not dest.is_device and status.st_size != manifest.image_bytes:
        return Doubt(f"the size of {dest.named} is another than when it was made", needs_consent=True)
    if dest.is_device and manifest.facts.get("device") not in (None, device_identity(status.st_rdev)):
        # It may hold an older backup, and begin like this one.
        return Doubt(f"{dest.named} is another disk than that of {places.manifest.named}", needs_consent=True)
    if half is not None and half.ranges is None:
        return Doubt(f"the note of what was written to {dest.named} is damaged", needs_consent=False)
    if not (_is_same_disk if dest.is_device else _is_same_file)(fd, manifest, half):
        return Doubt(f"somebody else has changed {dest.named} since it was made", needs_consent=dest.is_device)
    return None


def _is_same_file(fd: int, manifest: Manifest, half: HalfWay | None) -> bool:
    """By its times; an interrupted update has changed those."""
    file, status = manifest.facts.get("file"), os.fstat(fd)
    try:
        return isinstance(file, dict) and (is_same(file, status) if half is None else file["inode"] == status.st_ino)
    except KeyError:
        return False


def _is_same_disk(fd: int, manifest: Manifest, half: HalfWay | None) -> bool:
    """By the first extent that nobody has written to since: not every disk says which one it is."""
    written = half.ranges if half is not None and half.ranges is not None else Ranges()
    for one in manifest.extents:
        place = (one.extent.offset, one.extent.length)
        if one.digest and not any(next(ranges.within(*place), None) for ranges in (written, manifest.unread)):
            content = memoryview(bytearray(one.extent.length))
            try:
                read_at_most(fd, content, one.extent.offset)
            except OSError:
                return False
            return blake3(content).digest() == one.digest
    return True
