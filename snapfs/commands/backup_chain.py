"""`snapfs backup ... DIR/`: the next backup of a chain.

turn in DIR  ->  what an interrupted one left  ->  [cut]  ->  source  ->  full or increment  ->  one more backup
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from snapfs.backups.chain import Chain
from snapfs.backups.changes import Void
from snapfs.backups.choice import Below, choose
from snapfs.backups.facts import Facts
from snapfs.backups.layout import Names
from snapfs.backups.left import remove, settle, what_is_left
from snapfs.backups.making import Maker, Wish, free_names
from snapfs.backups.overlay import Overlay
from snapfs.backups.table import Table
from snapfs.backups.turn import turn
from snapfs.commands.backup_begin import check_image, cut_first, open_asked
from snapfs.commands.checkpoints import ChainCheckpoints
from snapfs.destination.consent import Consent
from snapfs.errors import SnapfsError, UsageError
from snapfs.imager.manifest import describe_ranges
from snapfs.imager.pace import yield_to_others
from snapfs.imager.progress import Report
from snapfs.imager.source import Source
from snapfs.options import BackupOptions
from snapfs.stamps import utc_now

_ANY_NUMBER: Final = 1 << 62


@dataclass(frozen=True)
class Linked:
    """A finished backup of a chain: its file, and what it is."""

    dest: Path
    facts: Facts


def backup_into_chain(options: BackupOptions, directory: Path, report: Report, consent: Consent) -> Linked:
    """Make one more backup in the directory. SnapfsError: the chain is as before; what there is may be resumed."""
    if options.manifest is not None:
        raise UsageError(
            f"The backups in {directory} have their manifests beside them; leave out --manifest, or give --format "
            "for a backup of its own."
        )
    with turn(directory, changes=True):
        left = settle(directory)
        chain = Chain.load(directory)
        for sentence in chain.notes:
            consent.note(sentence)
        names = _resumed(options, directory, left) if options.resume else None
        if names is None:
            _remove(left, consent)
        elif not chain.entries:
            # What is to be the first of the chain alone knows which.
            chain.id = str(what_is_left(names).get("chain"))
        options, cut_facts = cut_first(options, consent)
        yield_to_others()
        with open_asked(options) as source:
            _check(options, chain, source, consent)
            checkpoints = ChainCheckpoints(chain.id, options.source, source, consent.note)
            linked = _made(options, chain, names, source, checkpoints, cut_facts, report)
            if options.release:
                # Also what was not read: the snapshot owes nothing any more, but what another tool may still read.
                for offset, length in linked.facts.unread.outside(0, source.size_bytes):
                    source.release(offset, length)
        if linked.facts.unread:
            consent.note(_unread_sentence(linked, source.path))
        return linked


def _resumed(options: BackupOptions, directory: Path, left: list[Names]) -> Names:
    if not left:
        raise SnapfsError(f"There is nothing to resume in {directory}; leave out --resume.", path=directory)
    return left[-1]


def _remove(left: list[Names], consent: Consent) -> None:
    for names in left:
        remove(names)
        if not consent.quiet:
            consent.note(f"What an interrupted backup had left of {names.qcow2} was removed.")


def _check(options: BackupOptions, chain: Chain, source: Source, consent: Consent) -> None:
    last = chain.last
    if last is None or consent.force or options.resume:
        return
    try:
        was = chain.facts(last.name).image
    except SnapfsError:
        return
    check_image(chain.directory, was, source, consent.force, "the backups", "directory")


def _made(
    options: BackupOptions,
    chain: Chain,
    names: Names | None,
    source: Source,
    checkpoints: ChainCheckpoints,
    cut_facts: dict[str, Any],
    report: Report,
) -> Linked:
    tables: list[Table] = []
    try:
        if names is None:
            limit = options.max_increments
            changes_since = checkpoints.changes_since
            below = choose(chain, source, changes_since, tables, full=options.full, max_increments=limit)
            cut = source.facts["cut"]
            taken_at = cut["taken_at"] if cut else utc_now()
            names = free_names(chain.directory, source.facts["image"], taken_at)
        else:
            below, taken_at = _as_before(chain, names, source, tables)
        wish = Wish(
            options.source,
            compress=options.compress is not None,
            releases=options.release,
            resumes=options.resume,
            skips=options.on_read_error == "skip",
            verifies=options.verify,
            rate_bytes_per_s=options.rate_bytes_per_s,
            mode=options.mode,
        )
        facts = Maker(chain, names, source, below, wish, checkpoints).make(taken_at, cut_facts, report)
    finally:
        for table in tables:
            table.close()
    return Linked(names.qcow2, facts)


def _as_before(chain: Chain, names: Names, source: Source, tables: list[Table]) -> tuple[Below, str]:
    """What the interrupted backup stood on, and its time."""
    was = what_is_left(names)
    taken_at, why = str(was.get("taken_at")), str(was.get("why"))
    if was.get("base") is None:
        return Below((), Overlay(source.size_bytes, ()), None, why), taken_at
    # What is to be read is in its journal.
    below = choose(chain, source, lambda _: Void(why), tables, full=False, max_increments=_ANY_NUMBER)
    return replace(below, why=why), taken_at


def _unread_sentence(linked: Linked, source: Path) -> str:
    return (
        f"{describe_ranges(linked.facts.unread)} of {source} could not be read, and {linked.dest} has zeros there; "
        "the next backup reads them again."
    )
