"""The map of used blocks of a whole image.

Rules
1. All blocks start used. Only `_clear_free` clears bits, only from a map that its reader fully trusts, and only
   inside the region of that filesystem. **A used block taken for free is data loss**; the reverse costs space.
2. Partition tables, boot areas, gaps, backup headers, whatever follows a filesystem in its partition: used.
3. Whatever goes wrong in a parser makes its region wholly used, with the reason. Nothing else is affected.
4. A region that is not believed (see `regions`) is wholly used.
5. The image must not change during the scan: scan a snapshot view, or an image that nobody writes to.
"""

from __future__ import annotations

from collections.abc import Collection

from bitarray.util import ones

from snapfs.usedmap.readers import READERS
from snapfs.usedmap.regions import find_regions
from snapfs.usedmap.result import ImageMap, MapError, Region
from snapfs.usedmap.source import Source
from snapfs.usedmap.swap_files import free_contents

_MIN_BLOCK_BYTES, _MAX_BLOCK_BYTES = 512, 1 << 20

# True: every filesystem of the image was frozen by us for this cut; else the offsets of those that were.
FrozenByUs = bool | Collection[int]


def scan(
    fd: int,
    size_bytes: int,
    block_bytes: int,
    *,
    sector_bytes: int | None = None,
    skip_swap: bool = False,
    frozen_by_us: FrozenByUs = False,
) -> ImageMap:
    """Which blocks of the image behind `fd` hold something, and what the image consists of.

    `sector_bytes` is the logical sector size of a block device; an image file has none (None: found out from the
    partition table). With `skip_swap` the inside of swap space and of swap files counts as free. `frozen_by_us` lets
    filesystems without a journal, which are never marked clean while mounted, be trusted. Never raises for what is in
    the image.
    """
    if not _MIN_BLOCK_BYTES <= block_bytes <= _MAX_BLOCK_BYTES or block_bytes & (block_bytes - 1):
        raise ValueError(f"blocks of {block_bytes} bytes: it takes a power of two from 512 to 1048576")
    regions = find_regions(fd, size_bytes, sector_bytes=sector_bytes, skip_swap=skip_swap)
    image_map = ImageMap(block_bytes, size_bytes, ones(-(-size_bytes // block_bytes), "little"), regions)
    source = Source(fd, size_bytes)
    for region in regions:
        is_frozen = frozen_by_us if isinstance(frozen_by_us, bool) else region.offset in frozen_by_us
        _clear_free(image_map, source, region, is_frozen, skip_swap)
    return image_map


def _clear_free(image_map: ImageMap, image: Source, region: Region, is_frozen: bool, skip_swap: bool) -> None:
    """Read the map of the filesystem in `region` and clear what it proves free."""
    if region.reason:
        return
    source = image.window(region.offset, region.length)
    try:
        free_map = READERS[region.kind](source, frozen_by_us=is_frozen)
        skipped = free_contents(region.kind, source, free_map) if skip_swap else []
        # Arithmetic on arrays, which takes longer to load than all that an image without filesystems needs.
        from snapfs.usedmap import fold

        fold.clear_free_blocks(image_map, free_map, region.offset, region.length)
    except MapError as error:
        region.reason = f"the {region.kind} {error}"
    except Exception as error:  # a bug of a parser must cost space, never data
        region.reason = f"the {region.kind} could not be understood ({type(error).__name__}: {error})"
    else:
        region.state, region.skipped = "trusted", skipped
        region.block_bytes = free_map.unit_bytes
        region.free_bytes = free_map.free.count() * free_map.unit_bytes
