"""Whether the next backup is a full one or an increment, why, and which cells it has to read.

    read    used now and no hole: all of them for a full one, and when nobody knows what was written; else those with
            a block that was written since, or that became used or free, and those that could not be read before
    hidden  what the chain holds and is in no used cell any more, or in a hole: zeros

Of what is read only cells whose digest differs from the chain's are written, so reading too much costs time only.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitarray import bitarray

from snapfs.backups.chain import Chain
from snapfs.backups.changes import Changed, ChangesSince, Void, by_same_map
from snapfs.backups.facts import Base, Facts
from snapfs.backups.overlay import Overlay
from snapfs.backups.reading import open_table
from snapfs.backups.table import Table
from snapfs.errors import BackupDamagedError
from snapfs.imager.extents import Extent, cells_of, extents_of, used_cells
from snapfs.imager.source import Source
from snapfs.options import format_size


@dataclass(frozen=True)
class Below:
    """What the next backup stands on: nothing for a full one. `why`: why that is so, or why all has to be read."""

    links: tuple[Facts, ...]
    overlay: Overlay
    changed: Changed | None
    why: str

    @property
    def base(self) -> Base | None:
        if not self.links:
            return None
        last = self.links[-1]
        return Base(last.name, last.cut_id, last.id)

    def extents(self, source: Source) -> list[Extent]:
        """What is to be read, and (`is_zeros`) what is to be hidden, in order."""
        wanted = used_cells(source.used, source.block_bytes, source.size_bytes)
        if (holes := source.holes()) is not None:
            wanted &= ~holes
        hidden = self.overlay.held & ~wanted
        if self.changed is not None:
            wanted &= self._suspected(self.changed, source)
        found = [*extents_of(wanted, source.size_bytes)]
        found += extents_of(hidden, source.size_bytes, is_zeros=True)
        return sorted(found, key=lambda extent: extent.offset)

    def _suspected(self, changed: Changed, source: Source) -> bitarray:
        """Cells that may differ from what the chain has."""
        cells = used_cells(changed.suspected(source.used), source.block_bytes, source.size_bytes)
        return cells | cells_of(self.links[-1].unread, len(cells))


def choose(
    chain: Chain,
    source: Source,
    changes_since: ChangesSince,
    tables: list[Table],
    *,
    full: bool,
    max_increments: int,
) -> Below:
    """What the next backup of `source` stands on; its tables are added to `tables`, to be closed."""
    size_bytes = source.size_bytes
    reason, links = _why_full(chain, source, full, max_increments)
    if not reason:
        try:
            tables += (open_table(chain, link) for link in links)
        except BackupDamagedError as error:
            reason = _as_part(error)
    if reason:
        return Below((), Overlay(size_bytes, ()), None, reason)
    changed = by_same_map(changes_since(links[-1].cut_id), links[-1].used_blake3, source.used)
    overlay = Overlay(size_bytes, tables)
    if isinstance(changed, Void):
        return Below(tuple(links), overlay, None, changed.reason)
    return Below(tuple(links), overlay, changed, "")


def _why_full(chain: Chain, source: Source, full: bool, max_increments: int) -> tuple[str, list[Facts]]:
    """Why it has to be a full one, else an empty string and what it stands on."""
    last = chain.last
    if last is None:
        return "it is the first", []
    if full:
        return "--full asks for one", []
    try:
        links = chain.links(last.name)
        for link in links:
            if not chain.names(link.name).qcow2.is_file():
                return f"{chain.names(link.name).qcow2} is missing", []
    except BackupDamagedError as error:
        return _as_part(error), []
    was = links[-1]
    if was.image_bytes != source.size_bytes:
        sizes = f"{format_size(was.image_bytes)} to {format_size(source.size_bytes)}"
        return f"the size of the image went from {sizes}", []
    if was.block_bytes != source.block_bytes:
        sizes = f"{format_size(was.block_bytes)} to {format_size(source.block_bytes)}"
        return f"the block size went from {sizes}", []
    increments = links[1:]
    if len(increments) >= max_increments:
        return f"there are {len(increments)} increments since the last one", []
    if sum(link.file_bytes for link in increments) > links[0].file_bytes:
        return "the increments since the last one are larger than it is", []
    return "", links


def _as_part(error: BackupDamagedError) -> str:
    """The reason of an error without its way out."""
    return error.sentence.partition("; ")[0].rstrip(".")
