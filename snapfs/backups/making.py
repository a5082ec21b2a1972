"""One backup of a chain, from its first byte to its line in chain.json.

    (1) NAME.qcow2.partial.digests, .journal; NAME.qcow2.partial is written, synced, noted, again and again
    (2) what it holds is read back from the file itself, and becomes NAME.cells.partial
    (3) all of that on the disk, and the cut held; then NAME.json.partial: it is a backup that only lacks its names
    (4) the names: NAME.qcow2, NAME.cells, NAME.json
    (5) chain.json; then the cuts before are let go
    (6) the journal goes, then the digests

A crash before (3) is over leaves the chain as it was, and something to go on with from the first note on. A crash
after it leaves one more backup: the next command gives the names, and lists it.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from snapfs.backups.chain import Chain, Entry
from snapfs.backups.changes import fingerprint
from snapfs.backups.choice import Below
from snapfs.backups.digests import DigestsFile
from snapfs.backups.facts import Facts
from snapfs.backups.layout import QCOW2, Names
from snapfs.backups.left import is_written, remove
from snapfs.backups.reading import open_alone
from snapfs.backups.table import Table, write_table
from snapfs.backups.target import LinkTarget, check_held
from snapfs.destination.consent import Consent
from snapfs.destination.directory import names as dated_names
from snapfs.destination.place import look_at
from snapfs.destination.unfinished import Unfinished, claim
from snapfs.destination.write_errors import write_errors
from snapfs.errors import InterruptedByUserError, SnapfsError
from snapfs.imager.backup import Backup, Plan
from snapfs.imager.extents import extents_of
from snapfs.imager.journal import Done, Journal
from snapfs.imager.pace import Pace
from snapfs.imager.progress import Report
from snapfs.imager.qcow2 import Qcow2Target
from snapfs.imager.qcow2_map import Held, held_by
from snapfs.imager.results import RESUME
from snapfs.imager.source import Source
from snapfs.stamps import utc_now
from snapfs.whole import put_whole


@dataclass(frozen=True)
class Wish:
    """How a backup is to be made. `source` is what the user has named."""

    source: Path
    compress: bool = False
    releases: bool = False
    resumes: bool = False
    skips: bool = False
    verifies: bool = False
    rate_bytes_per_s: int | None = None
    mode: int | None = None


class Checkpoints(Protocol):
    """Keeps known what is written since the cut of a backup. Neither fails: without, the next one reads all."""

    def hold(self) -> None:
        """From the cut of this backup on."""

    def let_go(self) -> None:
        """All but that, of this chain."""


def free_names(directory: Path, image: str, taken_at: str) -> Names:
    """The first name that no file of a backup has, finished or not."""
    for path in dated_names(directory, Path(image).name, taken_at, QCOW2):
        names = Names(directory, path.name.removesuffix(QCOW2))
        if not any(os.path.lexists(one) for one in (*names.finished, *names.unfinished)):
            return names
    raise AssertionError("the names have no end")


class Maker:
    """Makes the backup `names` of `source`, on what is `below`."""

    def __init__(
        self, chain: Chain, names: Names, source: Source, below: Below, wish: Wish, checkpoints: Checkpoints
    ) -> None:
        self._chain, self._names, self._source, self._below, self._wish = chain, names, source, below, wish
        self._checkpoints = checkpoints
        self._access = source.access.with_mode(wish.mode)

    def make(self, taken_at: str, cut_facts: Mapping[str, Any], report: Report) -> Facts:
        """SnapfsError: the chain is as it was; it says whether there is something to be resumed."""
        with self._saying_what_is_left(), contextlib.ExitStack() as stack:
            digests = DigestsFile(self._names, resumes=self._wish.resumes, way_out=RESUME)
            stack.callback(digests.close)
            unfinished = self._claimed(self._names.qcow2, stack, resumes=self._wish.resumes)
            with self._journal(taken_at, digests) as (plan, journal):
                held = self._image(unfinished, plan, journal, digests, report)
                facts = self._named(unfinished, held, plan, digests, taken_at, cut_facts, report, stack)
        self._chain.entries.append(Entry.of(facts))
        self._chain.save(self._access)
        self._checkpoints.let_go()
        remove(self._names)
        return facts

    # --- what is written -------------------------------------------------------------------------------------

    def _image(
        self, unfinished: Unfinished, plan: Plan, journal: Journal, digests: DigestsFile, report: Report
    ) -> Held:
        wish, source, fd, path = self._wish, self._source, unfinished.fd, unfinished.path
        # Of what was interrupted before anything was noted there may not even be a header. What was noted and is to
        # be read again counts: the journal goes on telling of it.
        keeps = bool(journal.done)
        present = held_by(fd, path, source.size_bytes) if keeps else None
        base = self._below.base
        file = Qcow2Target(
            fd,
            path,
            source.size_bytes,
            compress=wish.compress,
            keep=keeps,
            way_out=RESUME,
            backing=None if base is None else base.name + QCOW2,
        )
        target = LinkTarget(file, digests, self._below.overlay, present)
        try:
            target.hide(extent for extent in plan.extents if extent.is_zeros)
            pace = Pace(wish.rate_bytes_per_s)
            releases, skips = wish.releases, wish.skips
            Backup(source, target, plan, journal, releases=releases, skips=skips, pace=pace, hashing=digests).run(
                report
            )
        finally:
            target.close()
        held = held_by(fd, path, source.size_bytes)
        check_held(held, plan.extents, digests, self._below.overlay, str(path))
        return held

    def _named(
        self,
        unfinished: Unfinished,
        held: Held,
        plan: Plan,
        digests: DigestsFile,
        taken_at: str,
        cut_facts: Mapping[str, Any],
        report: Report,
        stack: contextlib.ExitStack,
    ) -> Facts:
        size_bytes = self._source.size_bytes
        cells = self._claimed(self._names.cells, stack)
        with write_errors(str(cells.path), RESUME):
            parts = (digests.of_extent(extent).tobytes() for extent in extents_of(held.data, size_bytes))
            hashes = write_table(cells.fd, size_bytes, held.data, held.zeros, parts)
        facts = self._facts(unfinished, held, plan, taken_at, cut_facts, hashes)
        if self._wish.verifies:
            _verify(unfinished.path, cells.path, facts, report)
        for one in (unfinished, cells):
            one.settle(self._access)
        self._checkpoints.hold()
        last = self._claimed(self._names.facts, stack)
        with write_errors(str(last.path), RESUME):
            put_whole(last.fd, memoryview(facts.text().encode()))
        last.settle(self._access)
        files = (unfinished, cells, last)
        for one in files:
            one.check_may_be_named()
        for one in files:
            one.keep()
        for one in files:
            one.give_name()
        return facts

    def _facts(
        self,
        unfinished: Unfinished,
        held: Held,
        plan: Plan,
        taken_at: str,
        cut_facts: Mapping[str, Any],
        hashes: tuple[str, str],
    ) -> Facts:
        source, below = self._source, self._below
        cut = source.facts["cut"]
        return Facts(
            name=self._names.name,
            id=uuid.uuid4().hex,
            chain=self._chain.id,
            kind="full" if below.base is None else "increment",
            why=below.why,
            image=source.facts["image"],
            image_bytes=source.size_bytes,
            block_bytes=source.block_bytes,
            taken_at=taken_at,
            created_at=utc_now(),
            cut=None if cut is None else {**cut, **cut_facts},
            base=below.base,
            data_cells=held.data.count(),
            zero_cells=held.zeros.count(),
            read_bytes=sum(extent.length for extent in plan.extents if not extent.is_zeros),
            file_bytes=os.fstat(unfinished.fd).st_size,
            maps_blake3=hashes[0],
            table_blake3=hashes[1],
            used_blake3=fingerprint(source.used),
            identity=source.identity,
            regions=tuple(source.facts["regions"]),
            unread=plan.unread(),
        )

    # --- files and what is left of them ----------------------------------------------------------------------

    def _claimed(self, path: Path, stack: contextlib.ExitStack, *, resumes: bool = False) -> Unfinished:
        place = look_at(path, {"the image": self._wish.source})
        # What an interrupted run has left of the table and the facts is made again.
        unfinished = claim(place, Consent(force=True), resumes=resumes, owner=self._source.access.uid)
        stack.callback(unfinished.close)
        return unfinished

    @contextlib.contextmanager
    def _journal(self, taken_at: str, digests: DigestsFile) -> Iterator[tuple[Plan, Journal]]:
        base = self._below.base
        facts: dict[str, Any] = {
            **self._source.identity,
            "chain": self._chain.id,
            "base": None if base is None else base.id,
            "compress": self._wish.compress,
        }
        path = self._names.journal
        with write_errors(str(path), RESUME):
            if self._wish.resumes:
                journal = Journal.resume(path, facts)
            else:
                more = {"why": self._below.why, "taken_at": taken_at, "owner": self._access.uid}
                journal = Journal.create(path, {**facts, **more}, self._below.extents(self._source))
        try:
            yield Plan(list(journal.extents), self._still_done(journal, digests)), journal
        except BaseException:
            if not journal.done:
                # Nothing that could be resumed: send nobody there.
                path.unlink(missing_ok=True)
            raise
        finally:
            journal.close()

    def _still_done(self, journal: Journal, digests: DigestsFile) -> dict[int, Done]:
        """What need not be read again: its digests are there, and bad sectors only where they are passed over."""
        return {
            index: done
            for index, done in journal.done.items()
            if (self._wish.skips or not done.unread) and digests.has(journal.extents[index], done.digest)
        }

    @contextlib.contextmanager
    def _saying_what_is_left(self) -> Iterator[None]:
        journal = self._names.journal
        try:
            yield
        except KeyboardInterrupt:
            self._remove_unless_resumable()
            left = f"Interrupted, and a part of {self._names.qcow2} is left; --resume goes on with it."
            raise InterruptedByUserError(
                left if journal.exists() else "Interrupted; nothing is left behind."
            ) from None
        except SnapfsError as error:
            self._remove_unless_resumable()
            if not journal.exists():
                error.sentence = error.sentence.replace(RESUME, "back up again")
            raise
        except BaseException:
            self._remove_unless_resumable()
            raise

    def _remove_unless_resumable(self) -> None:
        if not self._names.journal.exists() and not is_written(self._names):
            with contextlib.suppress(SnapfsError):
                remove(self._names)


def _verify(path: Path, cells: Path, facts: Facts, report: Report) -> None:
    """Read back what was written; BackupDamagedError when it is something else."""
    table = Table(cells, facts.image_bytes, facts.maps_blake3)
    try:
        with open_alone(path, facts, table) as reader:
            reader.verify(report)
    finally:
        table.close()
