"""A backup while it is made: what is durable is noted, then released.

Order of one checkpoint, after every so many bytes:
    (1) sync the target     (2) note the extents in the journal     (3) release them
A crash between any two leaves extents that are read again, or kept longer than needed; never one that is in
neither place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final

from snapfs.destination.write_errors import write_errors
from snapfs.errors import SnapfsError
from snapfs.imager.extents import Extent, free_ranges
from snapfs.imager.hashing import Hashing, PlainHashing
from snapfs.imager.journal import Done, Journal
from snapfs.imager.manifest import Hashed, Manifest
from snapfs.imager.pace import Pace
from snapfs.imager.progress import Meter, Report
from snapfs.imager.source import Source
from snapfs.imager.stages import Stages
from snapfs.imager.target import Target
from snapfs.imager.unread import Ranges, Salvager
from snapfs.stamps import utc_now

# While the snapshot waits for it, often; else only so often that a resumed backup has little to repeat.
_RELEASE_BYTES: Final = 64 << 20
_NOTE_BYTES: Final = 256 << 20


@dataclass(frozen=True)
class Plan:
    """The extents of a backup, and what is known of those that an earlier run has done."""

    extents: list[Extent]
    done: dict[int, Done]

    def hashed(self) -> tuple[Hashed, ...]:
        """All extents; KeyError while one is not done."""
        return tuple(
            Hashed(extent, None if extent.is_zeros else self.done[i].digest) for i, extent in enumerate(self.extents)
        )

    def unread(self) -> Ranges:
        """What could not be read of the extents that are done."""
        return Ranges(sorted(one for done in self.done.values() for one in done.unread))

    def to_read(self) -> Iterator[tuple[int, Extent]]:
        for index, extent in enumerate(self.extents):
            if not extent.is_zeros and index not in self.done:
                yield index, extent

    def bytes_to_read(self) -> int:
        return sum(extent.length for _, extent in self.to_read())


class Backup:
    """One backup from `source` to `target`. Without a `journal` it cannot be resumed."""

    def __init__(
        self,
        source: Source,
        target: Target,
        plan: Plan,
        journal: Journal | None,
        *,
        releases: bool,
        skips: bool,
        pace: Pace,
        hashing: Hashing | None = None,
    ) -> None:
        """With `skips` what cannot be read becomes zeros, and is noted in the plan."""
        self._source, self._target, self._plan, self._journal = source, target, plan, journal
        self._releases, self._pace, self._hashing = releases, pace, hashing or PlainHashing()
        self._salvager = Salvager(source, Ranges()) if skips else None
        self._checkpoint_bytes = _RELEASE_BYTES if releases else _NOTE_BYTES
        self._unread = plan.unread()
        self._waiting: dict[int, Done] = {}
        self._waiting_bytes = 0

    def run(self, report: Report) -> None:
        """Copy what is not done yet. However it ends, what was written before can be resumed."""
        meter = Meter("backup", self._plan.bytes_to_read(), report, self._source.buffer_bytes)
        if self._releases and self._plan.done:
            # What an interrupted run had noted it may not have released.
            self._release(sorted(self._plan.done))
        read_into = self._salvager.read_into if self._salvager else self._source.read_into
        stages = Stages(
            read_into,
            self._target.write,
            self._on_written,
            meter.advance,
            self._pace,
            new_hasher=self._hashing.hasher,
            # To ask a bad disk for everything twice would take twice as long.
            announce=None if self._salvager else self._source.will_read,
        )
        self._write_zeros()
        try:
            stages.run(self._plan.to_read())
        except BaseException:
            self._save()
            raise
        self._checkpoint()
        self._target.finish()
        self._source.check()
        self._check_something_was_read()
        meter.finish()

    def _check_something_was_read(self) -> None:
        """A disk that is gone looks like one that is bad everywhere."""
        read_bytes = sum(self._plan.extents[index].length for index in self._plan.done)
        if read_bytes and self._unread.total_bytes == read_bytes:
            raise SnapfsError(
                f"Nothing of {self._source.path} can be read, so there is no backup of it; check the disk it is on.",
                path=self._source.path,
            )

    def _write_zeros(self) -> None:
        for extent in self._plan.extents:
            if extent.is_zeros:
                self._target.write_zeros(extent.offset, extent.length)
        for offset, length in free_ranges(self._plan.extents, self._source.size_bytes):
            self._target.write_zeros(offset, length)

    def _on_written(self, index: int, digest: bytes) -> None:
        extent = self._plan.extents[index]
        self._hashing.written(extent)
        unread = self._salvager.unread_in(extent.offset, extent.length) if self._salvager else []
        self._waiting[index] = Done(digest, unread)
        self._waiting_bytes += extent.length
        if self._waiting_bytes >= self._checkpoint_bytes:
            self._checkpoint()

    def _checkpoint(self) -> None:
        finished, self._waiting, self._waiting_bytes = self._waiting, {}, 0
        if self._target.is_durable:
            self._target.sync()
        if self._journal is not None and finished:
            with write_errors(str(self._journal.path), "go on with --resume"):
                self._journal.add(finished)
        self._plan.done.update(finished)
        for done in finished.values():
            for offset, length in done.unread:
                self._unread.add(offset, length)
        if self._releases and finished:
            self._release(list(finished))

    def _save(self) -> None:
        """After a failure: note what is there, if the target still takes it. The first failure is what counts."""
        self._releases = False
        try:
            self._checkpoint()
        except (SnapfsError, OSError):
            return

    def _release(self, indices: list[int]) -> None:
        """Release the extents, in order; those that follow each other in one request, with what lies between them,
        which the plan does not read. Never what could not be read: another tool may still get it from the snapshot,
        and keeping it costs nothing."""
        extents = self._plan.extents
        first = indices[0]
        for index, following in pairwise([*indices, len(extents)]):
            if following < len(extents) and all(one.is_zeros for one in extents[index + 1 : following]):
                continue
            start = extents[first].offset
            for offset, length in self._unread.outside(start, extents[index].end - start):
                self._source.release(offset, length)
            first = following


def finished_manifest(
    source: Source, plan: Plan, image_format: str, cut_facts: Mapping[str, Any] = MappingProxyType({})
) -> Manifest:
    """The manifest of a backup whose extents are all done; `cut_facts` are added to those of the cut."""
    cut = source.facts["cut"]
    facts = {
        **source.facts,
        "cut": None if cut is None else {**cut, **cut_facts},
        "created_at": utc_now(),
        "block_bytes": source.block_bytes,
        "used_bytes": source.used_bytes,
    }
    return Manifest(source.size_bytes, image_format, plan.hashed(), facts, plan.unread())
