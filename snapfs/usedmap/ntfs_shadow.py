"""Do shadow copies of an NTFS volume need clusters that `$Bitmap` calls free?

Rules
1. A shadow copy (VSS) keeps the old content of a block only once the block is overwritten. Until then it reads
   the block where it was, also in clusters whose file has been deleted since: what only it holds is free in
   `$Bitmap`. Freed, it would be lost without a trace in the volume itself.
2. The header of the shadow copies counts as empty only if it is of a known shape, names no catalog, and keeps
   its shadow copies on no other volume.
3. A volume whose first clusters hold something else there has no shadow copies.

Layout and its source: `ntfs_layout`.
"""

from __future__ import annotations

from snapfs.usedmap import ntfs_layout as layout
from snapfs.usedmap.result import MapError
from snapfs.usedmap.source import Source


def check_no_shadow_copies(source: Source) -> None:
    """Raise `MapError` when the volume has shadow copies, or may have some."""
    if source.size_bytes < layout.SHADOW_HEADER_OFFSET + layout.SHADOW_HEADER.size:
        return
    header = layout.SHADOW_HEADER.unpack(source.read(layout.SHADOW_HEADER_OFFSET, layout.SHADOW_HEADER.size))
    identifier, version, record_type, catalog_offset, volume, storage = header
    if identifier != layout.SHADOW_IDENTIFIER:
        return
    if version not in layout.SHADOW_VERSIONS or record_type != layout.SHADOW_HEADER_TYPE:
        raise MapError("has a header of shadow copies (VSS) that is not understood")
    if catalog_offset:
        raise MapError("has shadow copies (VSS), and what only they hold is free in its $Bitmap")
    if any(storage) and storage != volume:
        raise MapError(
            "has shadow copies (VSS) kept on another volume, and what only they hold is free in its $Bitmap"
        )
