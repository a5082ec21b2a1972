"""`snapfs changes`: what whoever has a copy of one snapshot has to fetch to have a copy of a later one.

    data    used now, and written since, or free then: read it
    zeros   free now and used then: it reads as zeros
    same    the rest of what is used: it is what it was

What is free reads as zeros; so a block that is used now and was free then is data, though nobody has written it. Both
snapshots are sealed: what is told does not change any more, however long it takes to fetch it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, TextIO

from bitarray import bitarray
from bitarray.util import intervals

from snapfs.chosen import read_chosen
from snapfs.commands.checkpoints import read_changed
from snapfs.commands.diff import Snapshot, chosen
from snapfs.errors import UsageError
from snapfs.imager.backup import Backup, Plan
from snapfs.imager.extents import extents_of, used_cells
from snapfs.imager.pace import Pace
from snapfs.imager.progress import Report
from snapfs.imager.snapshot_source import SnapshotSource
from snapfs.rbd.stream import DiffTarget
from snapfs.system.discovery import find_store
from snapfs.usedmap.domain import set_extents, write_domain
from snapfs.usedmap.result import ImageMap

_KINDS: Final = ("data", "zeros", "same")


@dataclass(frozen=True)
class SnapshotChanges:
    """Between two snapshots of an image, without `since` all of one: a bit per block of what may read otherwise
    (`suspected`), and of what is used in the later one."""

    since: Snapshot | None
    until: Snapshot
    block_bytes: int
    image_bytes: int
    suspected: bitarray
    used: bitarray

    def extents(self) -> Iterator[tuple[int, int]]:
        """`(start, length)` in bytes of all that may read otherwise."""
        return set_extents(self._map(self.suspected))

    def kinds(self) -> Iterator[tuple[int, int, str]]:
        """`(start, length, kind)` of the whole image, without gaps; what is free in both counts as zeros."""
        data = list(self._stretches(self.suspected & self.used, 0))
        same = list(self._stretches(self.used & ~self.suspected, 2))
        free = list(self._stretches(~self.used, 1))
        for start, length, kind in sorted(data + same + free):
            yield start, length, _KINDS[kind]

    def _stretches(self, bits: bitarray, kind: int) -> Iterator[tuple[int, int, int]]:
        return ((start, length, kind) for start, length in set_extents(self._map(bits)))

    def _map(self, bits: bitarray) -> ImageMap:
        return ImageMap(self.block_bytes, self.image_bytes, bits, [])

    # --- as others read it -----------------------------------------------------------------------------------

    def as_json(self, version: int) -> Iterator[str]:
        """An object with what has changed, in pieces of text; offsets and sizes in bytes."""
        head = json.dumps(
            {
                "version": version,
                "since": None if self.since is None else asdict(self.since),
                "until": asdict(self.until),
                "image_bytes": self.image_bytes,
                "block_bytes": self.block_bytes,
            }
        )
        yield head.removesuffix("}") + ', "extents": ['
        comma = ""
        for is_set, first, end in intervals(self.suspected):
            if is_set:
                for is_used, low, high in intervals(self.used[first:end]):
                    start = (first + low) * self.block_bytes
                    length = min((first + high) * self.block_bytes, self.image_bytes) - start
                    kind = "data" if is_used else "zeros"
                    yield f'{comma}{{"start": {start}, "length": {length}, "kind": "{kind}"}}'
                    comma = ", "
        yield "]}\n"

    def as_borg(self) -> Iterator[str]:
        """A map for `borg create --map` of borg 2: START LENGTH STATE of all of the image, where `same` needs
        `--reuse-from` the archive of the older snapshot."""
        names = {"data": "data", "zeros": "zero", "same": "same"}
        for start, length, kind in self.kinds():
            yield f"{start} {length} {names[kind]}\n"

    def write_domain(self, file: TextIO) -> None:
        """A domain map for ddrescue of what is to be read."""
        write_domain(file, self._map(self.suspected & self.used))


def read_snapshot_changes(path: Path, since: str | None, snapshot: str | None) -> SnapshotChanges:
    """Of the image behind `path`, up to that `snapshot` (the newest). SnapfsError: nobody knows, and why."""
    source = SnapshotSource(find_store(path), snapshot)
    try:
        return changes_until(source, path, since)
    finally:
        source.close()


def changes_until(source: SnapshotSource, path: Path, since: str | None) -> SnapshotChanges:
    """The same up to the snapshot that is read by `source`."""
    cut = source.facts["cut"]
    until, older = Snapshot(cut["id"], cut["taken_at"]), None
    suspected = source.used.copy()
    if since is not None:
        older = chosen(read_chosen(find_store(path), None), since, path)
        changed = read_changed(path, older.id, until.id)
        assert changed is not None, "whoever holds it does not matter"
        suspected = changed.suspected(source.used)
    return SnapshotChanges(older, until, source.block_bytes, source.size_bytes, suspected, source.used)


def write_rbd_diff(path: Path, since: str | None, snapshot: str | None, report: Report) -> None:
    """A diff for `rbd import-diff` on the standard output, from a snapshot of the name `since` to one of the other's
    name or id."""
    if os.isatty(sys.stdout.fileno()):
        raise UsageError("The standard output is a terminal; pipe the diff into rbd import-diff, or into a file.")
    source = SnapshotSource(find_store(path), snapshot)
    try:
        changes = changes_until(source, path, since)
        suspected = used_cells(changes.suspected, source.block_bytes, source.size_bytes)
        wanted = suspected & used_cells(source.used, source.block_bytes, source.size_bytes)
        extents = [*extents_of(wanted, source.size_bytes)]
        extents += extents_of(suspected & ~wanted, source.size_bytes, is_zeros=True)
        plan = Plan(sorted(extents, key=lambda extent: extent.offset), {})
        name = snapshot or changes.until.id
        target = DiffTarget(sys.stdout.fileno(), "the standard output", source.size_bytes, since, name)
        for extent in plan.extents:
            if extent.is_zeros:
                target.hide(extent.offset, extent.length)
        Backup(source, target, plan, None, releases=False, skips=False, pace=Pace(None)).run(report)
    finally:
        source.close()
