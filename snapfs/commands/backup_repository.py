"""`snapfs backup LIVE restic:REPOSITORY`: restic over the chunks of a snapshot.

repository opens  ->  [cut]  ->  map is known  ->  restic backup SNAP/.chunks/newest  ->  still that snapshot

The path stays the same, so that restic finds the backup before, and reads the files alone that have changed. What is
under it becomes another snapshot with the next cut: then the backup would be of two, and is ended and forgotten.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from snapfs.chosen import read_status_with
from snapfs.commands.backup_begin import check_cut, cut_first, refuse_others
from snapfs.destination.consent import Consent
from snapfs.errors import SnapfsError, UsageError
from snapfs.imager.pace import yield_to_others
from snapfs.imager.progress import Meter, Report
from snapfs.imager.snapshot_source import SnapshotSource
from snapfs.options import NEWEST_NAME, BackupOptions
from snapfs.restic.tool import Repository, Summary, parse_spec, tags_of
from snapfs.system.discovery import find_store
from snapfs.system.shown_files import CHUNKS_NAME

_LOOK_S: Final = 1.0


@dataclass(frozen=True)
class Kept:
    """A finished backup in a repository."""

    name: str
    cut: dict[str, Any]
    image_bytes: int
    used_bytes: int
    summary: Summary


def backup_into_repository(options: BackupOptions, report: Report, consent: Consent) -> Kept:
    """Make one more backup. SnapfsError: the repository has those that it had, or the sentence says what else."""
    repository, named = parse_spec(options.address)
    if named is not None:
        raise UsageError(f"restic gives a backup its id; leave out @{named}.")
    refuse_others(options, repository)
    check_cut(options)
    store = find_store(options.source)
    repository.check()
    has_cut = options.cut is not None
    options, cut_facts = cut_first(options, consent)
    yield_to_others()
    source = SnapshotSource(store, options.snapshot)
    try:
        shown = _Shown(store, source, is_newest=options.snapshot is None or has_cut)
        summary = shown.back_up(repository, report)
        if options.release:
            source.release(0, source.size_bytes)
    finally:
        source.close()
    cut = {**source.facts["cut"], **cut_facts}
    return Kept(f"{repository}@{summary.id}", cut, source.size_bytes, source.used_bytes, summary)


class _Shown:
    """The folder in which the chunks of a snapshot are, as long as they are its."""

    def __init__(self, store: Path, source: SnapshotSource, *, is_newest: bool) -> None:
        self._store, self._source = store, source
        self._id = str(source.facts["cut"]["id"])
        status = read_status_with(store, self._id)
        # One without a name is shown under no other.
        self._folder = NEWEST_NAME if is_newest else str(status["snapshot"]["name"]) or NEWEST_NAME
        self._path = Path(status["snap"]) / CHUNKS_NAME / self._folder
        self._looked_s = 0.0

    def back_up(self, repository: Repository, report: Report) -> Summary:
        source, cut = self._source, self._source.facts["cut"]
        meter = Meter("backup", source.size_bytes, report, source.buffer_bytes)
        left_bytes = source.size_bytes

        def advance(length: int) -> None:
            nonlocal left_bytes
            self._check_now_and_then()
            left_bytes -= length
            meter.advance(length)

        self._check()
        tags = tags_of(source.facts["image"], self._id)
        try:
            summary = repository.back_up(self._path, tags, str(cut["taken_at"]), advance)
        except SnapfsError:
            # Says more when that is why.
            self._check()
            raise
        try:
            self._check()
        except BaseException:
            repository.forget(summary.id)
            raise
        # restic does not report at its end.
        meter.advance(left_bytes)
        meter.finish()
        return summary

    def _check_now_and_then(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s >= _LOOK_S:
            self._looked_s = now_s
            self._check()

    def _check(self) -> None:
        """SnapfsError when the folder may show something else by now."""
        self._source.check()
        status = read_status_with(self._store, None)
        if self._folder == NEWEST_NAME and status["snapshots"][-1]["id"] != self._id:
            raise SnapfsError(
                f"A newer cut has replaced the snapshot that {self._path} showed; begin the backup again, or give it "
                "a snapshot with a name (--snapshot).",
                path=self._path,
            )
