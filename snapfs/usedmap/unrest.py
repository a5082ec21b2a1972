"""What was not at rest when the image was cut, and so has no map, however clean it looks.

Rules
1. A filesystem that was mounted and not frozen counts as wholly used. NTFS under ntfs-3g looks clean all the time.
2. Where somebody wrote without the kernel (a guest, a driver in user space), only a filesystem that was frozen for
   the cut has a map, or one whose format tells by itself that it is in use:

       btrfs           what the last superblock leads to is never overwritten
       XFS             the log holds what is not in its place yet
       ext3, ext4      "needs recovery" from the mount to the unmount, with a journal

   FAT, exFAT, NTFS and ext without a journal are set down as clean, or left so, by some who write to them.
3. What swap holds is never asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from snapfs.usedmap.readers import SWAP_KIND
from snapfs.usedmap.result import ImageMap, MapError, Region
from snapfs.usedmap.source import Source

_TELLING_KINDS = frozenset({"btrfs", "xfs", SWAP_KIND})
_EXT_KINDS = frozenset({"ext3", "ext4"})


def distrust_mounted(image_map: ImageMap, offset: int) -> None:
    """Count the filesystem at `offset` as wholly used: it was mounted at the cut, and nothing froze it.

    One that is at no known place (nothing begins at `offset`) makes the whole image used.
    """
    found = [region for region in image_map.regions if region.offset == offset]
    for region in found or image_map.regions:
        _count_as_used(image_map, region, "was mounted at the cut and could not be frozen")


def distrust_written(
    image_map: ImageMap, fd: int, offset: int | None, length: int | None, name: str, frozen: Collection[int]
) -> None:
    """Count what `name` wrote at the cut as wholly used: `length` bytes from `offset` on (None: all, the rest),
    but for what was `frozen` and what tells by itself."""
    start = offset or 0
    end = image_map.size_bytes if offset is None or length is None else offset + length
    source = Source(fd, image_map.size_bytes)
    for region in _trusted(image_map.regions):
        touched = region.offset < end and start < region.offset + region.length
        if touched and region.offset not in frozen and not _tells(region, source):
            _count_as_used(image_map, region, f"{name} was writing at the cut, and nothing froze it")


def _trusted(regions: Iterable[Region]) -> list[Region]:
    return [region for region in regions if region.state == "trusted"]


def _tells(region: Region, source: Source) -> bool:
    if region.kind in _TELLING_KINDS:
        return True
    return region.kind in _EXT_KINDS and _has_journal(source.window(region.offset, region.length))


def _has_journal(source: Source) -> bool:
    # Loaded for ext alone, as its reader is.
    import numpy as np

    from snapfs.usedmap import ext_layout

    try:
        superblock = source.read(ext_layout.SUPERBLOCK_OFFSET, ext_layout.SUPERBLOCK_BYTES)
    except MapError:
        return False
    compat = int(np.frombuffer(superblock, ext_layout.SUPERBLOCK)[0]["compat"])
    return bool(compat & ext_layout.COMPAT_HAS_JOURNAL)


def _count_as_used(image_map: ImageMap, region: Region, reason: str) -> None:
    region.state, region.free_bytes, region.reason = "all-used", 0, reason
    region.skipped = []
    first = region.offset // image_map.block_bytes
    end = -(-(region.offset + region.length) // image_map.block_bytes)
    image_map.used[first:end] = True
