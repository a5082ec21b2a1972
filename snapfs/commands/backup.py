"""`snapfs backup`: the imager.

    [cut]  ->  source: LIVE, SNAP, IMAGE  ->  DEST.partial, checkpoints  ->  [verify]  ->  DEST, DEST.json

What is unfinished keeps the name DEST.partial, with a journal beside it while `--resume` could go on with it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from snapfs.backups.changes import fingerprint
from snapfs.commands.backup_begin import check_cut, check_device, cut_first, open_asked
from snapfs.commands.backup_chain import Linked, backup_into_chain
from snapfs.commands.backup_old import Old, old_backup
from snapfs.commands.backup_pool import Pooled, backup_into_pool
from snapfs.commands.backup_repository import Kept, backup_into_repository
from snapfs.commands.backup_update import Updated, bring_up_to_date
from snapfs.commands.checkpoints import ChainCheckpoints
from snapfs.destination.consent import Consent
from snapfs.destination.directory import free_name, left_name, names
from snapfs.destination.in_use import refuse_views_and_stores
from snapfs.destination.write_errors import write_errors
from snapfs.errors import BusyError, SnapfsError, UsageError
from snapfs.imager import zstd
from snapfs.imager.backup import Backup, Plan, finished_manifest
from snapfs.imager.holder import holder_at, new_holder, noted
from snapfs.imager.journal import Done, Journal
from snapfs.imager.manifest import Manifest, describe_unread
from snapfs.imager.pace import Pace, yield_to_others
from snapfs.imager.progress import Report
from snapfs.imager.qcow2 import Qcow2Target
from snapfs.imager.reader import open_backup
from snapfs.imager.results import RESUME, Places, Results, ask_for_rescue_map, look_at_places, saying_what_is_left
from snapfs.imager.source import Source
from snapfs.imager.target import FileTarget, StreamTarget, Target
from snapfs.options import BackupOptions
from snapfs.rbd.tool import SCHEME as POOL_SCHEME
from snapfs.restic.tool import SCHEME as REPOSITORY_SCHEME
from snapfs.stamps import utc_now
from snapfs.system.mounts import canonical_path

_MAX_TRIES: Final = 100


@dataclass(frozen=True)
class Made:
    """A finished backup: where it is, and what it is."""

    dest: Path
    manifest: Manifest
    # With --update and a backup that was there; None: all of it was made.
    updated: Updated | None = None


def backup(options: BackupOptions, report: Report, consent: Consent) -> Made | Linked | Pooled | Kept:
    """Make one backup. SnapfsError: nothing has the final name; what there is may be resumed."""
    if options.compress == "zstd" and not options.is_stream:
        raise UsageError("--compress zstd is for a stream; name - as DEST, or say --format qcow2 --compress.")
    if options.address.startswith(POOL_SCHEME):
        return backup_into_pool(options, report, consent)
    if options.address.startswith(REPOSITORY_SCHEME):
        return backup_into_repository(options, report, consent)
    is_directory = _is_directory(options)
    if is_directory and options.format is None and not options.update:
        check_cut(options)
        return backup_into_chain(options, canonical_path(options.dest), report, consent)
    if options.update and is_directory:
        raise UsageError(
            f"In {options.dest} each backup has a name of its own; leave out --update, or name a file or a device."
        )
    if options.full:
        raise UsageError("--full is about a directory of backups; leave it out, or name a DIR and no --format.")
    options = replace(options, format=options.format or "raw")
    _check_options(options)
    if is_directory or not options.update:
        places = None if is_directory else _looked_at(options, options.dest, consent)
        return _backed_up(options, None, places, report, consent)
    with old_backup(options, consent) as old:
        places = None if old is not None else _looked_at(options, options.dest, consent)
        return _backed_up(options, old, places, report, consent)


def _backed_up(
    options: BackupOptions, old: Old | None, places: Places | None, report: Report, consent: Consent
) -> Made:
    """The cut first, if asked for; then DEST is brought up to date where it is, or all of it made."""
    options, cut_facts = cut_first(options, consent)
    yield_to_others()
    with open_asked(options) as source:
        if old is not None and not old.fits(source, consent.force):
            old.close()
            old, places = None, _looked_at(options, options.dest, consent)
        if old is not None:
            updated = bring_up_to_date(old, options, source, cut_facts, report, consent)
            made = Made(options.dest, updated.manifest, updated)
            named = old.places
        else:
            made, named = _all_made(options, source, places, cut_facts, report, consent)
        manifest = made.manifest
        if options.release or options.cut is not None:
            # Also what is in no extent: the snapshot owes nothing any more, but what another tool may still read.
            for offset, length in manifest.unread.outside(0, source.size_bytes):
                source.release(offset, length)
        if manifest.unread:
            consent.note(_unread_sentence(options, named, manifest, source))
    return made


def _all_made(
    options: BackupOptions,
    source: Source,
    places: Places | None,
    cut_facts: dict[str, Any],
    report: Report,
    consent: Consent,
) -> tuple[Made, Places]:
    before = None if places is None else holder_at(places.manifest)
    with (
        _results(options, source, places, consent) as results,
        saying_what_is_left(results),
        _journal(options, source, results) as (plan, journal),
    ):
        if before is not None and results.dest is None:
            # What is written in place has no manifest any more, so nothing else would name its checkpoint.
            ChainCheckpoints(before, options.source, source, consent.note).let_go_of_all()
        _image(options, source, plan, journal, report, results)
        manifest = finished_manifest(source, plan, options.format or "raw", cut_facts)
        _check_written(options, manifest, report, results)
        access = source.access.with_mode(options.mode)
        results.write_rescue_map(manifest, source.path, consent, access)
        if options.update:
            holder = before or new_holder()
            checkpoints = ChainCheckpoints(holder, options.source, source, consent.note)
            checkpoints.hold()
            results.finish(noted(manifest, holder, fingerprint(source.used)), access)
            checkpoints.let_go()
        else:
            if before is not None:
                # The new manifest does not name it: after a crash in between nobody would let go of it.
                ChainCheckpoints(before, options.source, source, consent.note).let_go_of_all()
            results.finish(manifest, access)
        results.places.forget_half_way()
    dest = results.places.dest
    return Made(options.dest if dest is None else dest.named, manifest), results.places


def _check_options(options: BackupOptions) -> None:
    if options.compress == "zlib" and options.format != "qcow2":
        raise UsageError("A raw file cannot be compressed; say --format qcow2, or for a stream: - --compress zstd.")
    if options.update and options.format != "raw":
        raise UsageError("Only a raw backup is brought up to date in place; leave out --update, or --format.")
    if options.is_stream:
        for is_asked, name in (
            (options.update, "--update"),
            (options.format != "raw", "--format qcow2"),
            (options.verify, "--verify"),
            (options.resume, "--resume"),
            (options.release, "--release"),
        ):
            if is_asked:
                raise UsageError(f"{name} needs a DEST that can be read back; name a file instead of -.")
        if os.isatty(sys.stdout.fileno()):
            raise UsageError("The standard output is a terminal; pipe the backup somewhere, or name a file.")
    check_cut(options)


def _is_directory(options: BackupOptions) -> bool:
    """Whether the backup is to have a name of its own in DEST; SnapfsError when it cannot be there."""
    if options.is_stream:
        return False
    real = canonical_path(options.dest)
    refuse_views_and_stores(options.dest, real)
    if real.is_dir():
        return True
    if options.in_directory:
        raise SnapfsError(f"{options.dest} is no directory; make it, or name another DEST.", path=options.dest)
    return False


def _looked_at(options: BackupOptions, dest: Path, consent: Consent) -> Places:
    """Where the files are to be, and the user's consent to what they replace."""
    reading = {"the image": options.source}
    places = look_at_places(None if options.is_stream else dest, options.manifest, reading)
    if places.dest is not None:
        check_device(places.dest, options)
    half = places.half_way()
    if half is not None and options.resume:
        raise UsageError(f"{half.state}, and --resume goes on with a backup of its own; say --update as well.")
    if half is not None:
        consent.note(f"{half.state}; --update goes on with it.")
    if options.resume and places.journal is None:
        raise UsageError(f"A backup to {dest} can be resumed only with --manifest FILE; begin again with it.")
    if options.on_read_error == "skip" and places.rescue_map is not None and not options.resume:
        ask_for_rescue_map(places.rescue_map, consent)
    for place in (places.dest, places.manifest):
        if place is not None and not options.resume:
            consent.ask_for(place)
    return places


@contextmanager
def _results(options: BackupOptions, source: Source, places: Places | None, consent: Consent) -> Iterator[Results]:
    """The claimed files; at the end they are removed, unless they have their names or can be resumed."""
    results = _claimed(options, source, places, consent)
    try:
        yield results
    finally:
        journal = results.places.journal
        results.close(removes=journal is None or not journal.exists())


def _claimed(options: BackupOptions, source: Source, places: Places | None, consent: Consent) -> Results:
    for _ in range(_MAX_TRIES):
        results = Results(places or _looked_at(options, _name_in_directory(options, source), consent))
        try:
            results.claim(consent, source.size_bytes, resumes=options.resume, owner=source.access.uid)
            return results
        except BaseException as error:
            results.close(removes=not options.resume)
            # In a directory another backup may have taken the name since we looked.
            if not isinstance(error, BusyError) or places is not None or options.resume:
                raise
    raise BusyError(f"Too many others make backups in {options.dest}; try again.", path=options.dest)


def _name_in_directory(options: BackupOptions, source: Source) -> Path:
    suffix = ".img" if options.format == "raw" else f".{options.format}"
    cut = source.facts["cut"]
    if cut is None and options.resume:
        raise UsageError(f"Of an image that is not mounted name the backup in {options.dest} that is to be resumed.")
    found = names(options.dest, Path(source.facts["image"]).name, cut["taken_at"] if cut else _now(), suffix)
    return left_name(found, options.dest) if options.resume else free_name(found)


def _now() -> str:
    return utc_now()


@contextmanager
def _journal(options: BackupOptions, source: Source, results: Results) -> Iterator[tuple[Plan, Journal | None]]:
    """The plan of this backup, from the interrupted one with `--resume`; the journal goes when all went well."""
    path = results.places.journal
    if path is None:
        yield Plan(source.extents(), {}), None
        return
    facts: dict[str, Any] = {**source.identity, "format": options.format, "compress": options.compress is not None}
    with write_errors(str(path), RESUME):
        journal = Journal.resume(path, facts) if options.resume else Journal.create(path, facts, source.extents())
    try:
        yield Plan(list(journal.extents), _still_done(options, journal)), journal
        path.unlink(missing_ok=True)
    except BaseException:
        if not journal.done:
            # Nothing that could be resumed: leave no debris, and do not send anybody there.
            path.unlink(missing_ok=True)
        raise
    finally:
        journal.close()


def _still_done(options: BackupOptions, journal: Journal) -> dict[int, Done]:
    """What need not be read again; whoever does not want to go past bad sectors wants none in the backup."""
    skips = options.on_read_error == "skip"
    return {index: done for index, done in journal.done.items() if skips or not done.unread}


def _image(
    options: BackupOptions, source: Source, plan: Plan, journal: Journal | None, report: Report, results: Results
) -> None:
    target = _open_target(options, source, results, keep=journal is not None and bool(journal.done))
    try:
        pace, skips = Pace(options.rate_bytes_per_s), options.on_read_error == "skip"
        Backup(source, target, plan, journal, releases=options.release, skips=skips, pace=pace).run(report)
    finally:
        target.close()


def _open_target(options: BackupOptions, source: Source, results: Results, *, keep: bool) -> Target:
    """`keep`: an interrupted run has noted something that is in it."""
    fd, size_bytes = results.fd, source.size_bytes
    if fd is None:
        compressor = zstd.compressor(size_bytes) if options.compress == "zstd" else None
        return StreamTarget(sys.stdout.fileno(), size_bytes, compressor)
    path = results.path
    if options.format == "qcow2":
        return Qcow2Target(fd, path, size_bytes, compress=options.compress is not None, keep=keep, way_out=RESUME)
    is_new = results.dest is not None and not options.resume
    return FileTarget(fd, path, size_bytes, is_new=is_new, way_out=RESUME)


def _check_written(options: BackupOptions, manifest: Manifest, report: Report, results: Results) -> None:
    if options.verify:
        with open_backup(results.path, manifest) as reader:
            reader.verify(report)


def _unread_sentence(options: BackupOptions, places: Places, manifest: Manifest, source: Source) -> str:
    where = "the backup" if places.dest is None else str(places.dest.named)
    what = f"{describe_unread(manifest)} of {source.path} could not be read, and {where} has zeros there"
    if places.rescue_map is None:
        return f"{what}; with --manifest FILE all of it is listed."
    file = places.rescue_map.named
    if places.dest is None or options.format != "raw":
        return f"{what}; {file} lists all of it."
    force = " -f" if places.dest.is_device else ""
    return f"{what}; to try again: ddrescue{force} -r 3 {source.path} {where} {file}."
