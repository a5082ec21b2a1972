"""``snapfs backup``: the imager.

    [cut]  ->  source: LIVE, SNAP, IMAGE  ->  DEST.partial, checkpoints  ->  [verify]  ->  DEST, DEST.json

What is unfinished keeps the name DEST.partial, with a journal beside it while `--resume` could go on with it.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from snapfs.commands.snapshot import SnapshotOptions, snapshot
from snapfs.errors import SnapfsError, UsageError
from snapfs.imager.backup import Backup, Plan, finished_manifest, give_names
from snapfs.imager.journal import Done, Journal, journal_path
from snapfs.imager.manifest import Manifest, describe_unread, manifest_path, write_manifest
from snapfs.imager.pace import Pace, yield_to_others
from snapfs.imager.progress import Report
from snapfs.imager.qcow2 import Qcow2Target
from snapfs.imager.reader import open_backup
from snapfs.imager.rescue_map import is_rescue_map, rescue_map_path, write_rescue_map
from snapfs.imager.snapshot_source import SnapshotSource
from snapfs.imager.source import Source, open_source
from snapfs.imager.target import FileTarget, StreamTarget, Target, partial_path, write_errors

Format = Literal["raw", "qcow2"]
OnReadError = Literal["stop", "skip"]
Confirm = Callable[[str], bool]
STDOUT = Path("-")
_RESUME = "go on with --resume"


@dataclass(frozen=True)
class BackupOptions:
    """One `snapfs backup`, as asked for."""

    source: Path
    dest: Path
    format: Format = "raw"
    compress: bool = False
    manifest: Path | None = None
    cut: SnapshotOptions | None = None
    release: bool = False
    resume: bool = False
    verify: bool = False
    force: bool = False
    rate_bytes_per_s: int | None = None
    on_read_error: OnReadError = "stop"

    @property
    def is_stream(self) -> bool:
        return self.dest == STDOUT

    @property
    def is_device(self) -> bool:
        return not self.is_stream and self.dest.is_block_device()

    @property
    def written_to(self) -> Path:
        """What is opened for writing."""
        return self.dest if self.is_device else partial_path(self.dest)

    @property
    def manifest_file(self) -> Path | None:
        if self.manifest is not None or self.is_stream or self.is_device:
            return self.manifest
        return manifest_path(self.dest)

    @property
    def rescue_map_file(self) -> Path | None:
        """Where ddrescue finds what is unread."""
        if self.is_stream or self.is_device:
            return None if self.manifest is None else rescue_map_path(self.manifest)
        return rescue_map_path(self.dest)

    @property
    def journal_file(self) -> Path | None:
        """None where nothing can be resumed."""
        if self.is_stream:
            return None
        if self.is_device:
            return journal_path(self.manifest) if self.manifest else None
        return journal_path(partial_path(self.dest))


def backup(options: BackupOptions, report: Report, confirm: Confirm, note: Callable[[str], None]) -> Manifest:
    """Make one backup. SnapfsError: nothing has the final name; what there is may be resumed.

    ``note`` gets sentences about what is not as it should be: what was not frozen, what could not be read.
    """
    _check_options(options)
    _check_dest(options, confirm)
    _check_rescue_map(options)
    cut_facts: dict[str, Any] = {}
    if options.cut is not None:
        taken = snapshot(options.source, options.cut)
        for sentence in taken.problems:
            note(sentence)
        cut_facts = {"frozen": taken.frozen, "not_frozen": [asdict(one) for one in taken.not_frozen]}
        options = replace(options, release=not options.is_stream)
    yield_to_others()
    with open_source(options.source, takes_damaged=options.on_read_error == "skip") as source:
        _check_source(options, source)
        with _journal(options, source) as (plan, journal):
            _image(options, source, plan, journal, report)
            manifest = finished_manifest(source, plan, options.format, cut_facts)
            _check_written(options, manifest, report)
            _write_rescue_map(options, manifest, source)
            _finish(options, manifest)
        if options.release or options.cut is not None:
            # Also what is in no extent: the snapshot owes nothing any more, but what another tool may still read.
            for offset, length in manifest.unread.outside(0, source.size_bytes):
                source.release(offset, length)
        if manifest.unread:
            note(_unread_sentence(options, manifest, source))
    return manifest


def _check_options(options: BackupOptions) -> None:
    if options.compress and options.format != "qcow2":
        raise UsageError("A raw backup cannot be compressed; say --format qcow2, or pipe it: - | zstd.")
    if options.is_stream:
        for is_asked, name in (
            (options.format != "raw", "--format qcow2"),
            (options.verify, "--verify"),
            (options.resume, "--resume"),
            (options.release, "--release"),
        ):
            if is_asked:
                raise UsageError(f"{name} needs a DEST that can be read back; name a file instead of -.")
        if os.isatty(sys.stdout.fileno()):
            raise UsageError("The standard output is a terminal; pipe the backup somewhere, or name a file.")
    if options.is_device and options.format != "raw":
        raise UsageError(f"{options.dest} is a device, and a device takes raw only; leave out --format.")
    if options.resume and options.journal_file is None:
        raise UsageError(f"A backup to {options.dest} can be resumed only with --manifest FILE; begin again with it.")
    if options.resume and options.cut is not None:
        raise UsageError("--resume goes on with an old cut, and --cut makes a new one; leave out one of them.")


def _check_dest(options: BackupOptions, confirm: Confirm) -> None:
    dest = options.dest
    if options.is_stream:
        return
    try:
        mode = dest.stat().st_mode
    except FileNotFoundError:
        if not dest.absolute().parent.is_dir():
            raise SnapfsError(f"{dest.parent} is no directory; make it, or name another DEST.", path=dest) from None
        return
    except OSError as error:
        raise SnapfsError(f"{dest}: {error.strerror}; name another DEST.", path=dest) from error
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise UsageError(f"{dest} is neither a file nor a block device; name another DEST.")
    if os.path.exists(options.source) and os.path.samefile(dest, options.source):
        raise UsageError(f"{dest} is the image itself; name another DEST.")
    if not options.force and not options.resume and not confirm(f"{dest} will be overwritten. Go on?"):
        raise UsageError(f"{dest} exists and would be overwritten; say --force, or name another DEST.")


def _check_rescue_map(options: BackupOptions) -> None:
    file = options.rescue_map_file
    is_needed = options.on_read_error == "skip" and not options.force
    if is_needed and file is not None and os.path.lexists(file) and not is_rescue_map(file):
        raise UsageError(f"{file} exists and would be overwritten with what is unread; say --force, or move it away.")


def _check_source(options: BackupOptions, source: Source) -> None:
    if options.release and not isinstance(source, SnapshotSource):
        raise UsageError(f"{source.path} is not mounted with snapfs and owes nothing; leave out --release.")


@contextmanager
def _journal(options: BackupOptions, source: Source) -> Iterator[tuple[Plan, Journal | None]]:
    """The plan of this backup, from the interrupted one with `--resume`; the journal goes when all went well."""
    path = options.journal_file
    if path is None:
        yield Plan(source.extents(), {}), None
        return
    facts: dict[str, Any] = {**source.identity, "format": options.format, "compress": options.compress}
    with write_errors(str(path), _RESUME):
        journal = Journal.resume(path, facts) if options.resume else Journal.create(path, facts, source.extents())
    try:
        if options.resume and not options.written_to.exists():
            raise SnapfsError(f"{options.written_to} is gone, so nothing can be resumed; leave out --resume.")
        yield Plan(list(journal.extents), _still_done(options, journal)), journal
        path.unlink(missing_ok=True)
    except BaseException as error:
        if not journal.done:
            # Nothing that could be resumed: leave no debris, and do not send anybody there.
            path.unlink(missing_ok=True)
            if not options.is_device:
                options.written_to.unlink(missing_ok=True)
            if isinstance(error, SnapfsError):
                error.sentence = error.sentence.replace(_RESUME, "back up again")
        raise
    finally:
        journal.close()


def _still_done(options: BackupOptions, journal: Journal) -> dict[int, Done]:
    """What need not be read again; whoever does not want to go past bad sectors wants none in the backup."""
    skips = options.on_read_error == "skip"
    return {index: done for index, done in journal.done.items() if skips or not done.unread}


def _image(options: BackupOptions, source: Source, plan: Plan, journal: Journal | None, report: Report) -> None:
    target = _open_target(options, source)
    try:
        pace, skips = Pace(options.rate_bytes_per_s), options.on_read_error == "skip"
        Backup(source, target, plan, journal, releases=options.release, skips=skips, pace=pace).run(report)
    finally:
        target.close()


def _open_target(options: BackupOptions, source: Source) -> Target:
    if options.is_stream:
        return StreamTarget(sys.stdout.fileno(), source.size_bytes)
    path, size_bytes, keep = options.written_to, source.size_bytes, options.resume
    if options.format == "qcow2":
        return Qcow2Target(path, size_bytes, compress=options.compress, keep=keep, way_out=_RESUME)
    return FileTarget(path, size_bytes, keep=keep, way_out=_RESUME)


def _check_written(options: BackupOptions, manifest: Manifest, report: Report) -> None:
    if options.verify:
        with open_backup(options.written_to, manifest) as reader:
            reader.verify(report)


def _unread_sentence(options: BackupOptions, manifest: Manifest, source: Source) -> str:
    where = "the backup" if options.is_stream else str(options.dest)
    what = f"{describe_unread(manifest)} of {source.path} could not be read, and {where} has zeros there"
    file = options.rescue_map_file
    if file is None:
        return f"{what}; with --manifest FILE all of it is listed."
    if options.is_stream or options.format != "raw":
        return f"{what}; {file} lists all of it."
    force = " -f" if options.is_device else ""
    return f"{what}; to try again: ddrescue{force} -r 3 {source.path} {options.dest} {file}."


def _write_rescue_map(options: BackupOptions, manifest: Manifest, source: Source) -> None:
    """Before the backup has its name; one that an older backup has left is of other bytes."""
    file = options.rescue_map_file
    if file is None:
        return
    with write_errors(str(file), _RESUME):
        if manifest.unread:
            write_rescue_map(file, manifest.image_bytes, manifest.unread, source.path)
        elif is_rescue_map(file):
            file.unlink()


def _finish(options: BackupOptions, manifest: Manifest) -> None:
    file = options.manifest_file
    if options.is_stream or options.is_device:
        if file is not None:
            with write_errors(str(file), _RESUME):
                write_manifest(file, manifest)
        return
    assert file is not None
    give_names(options.written_to, options.dest, manifest, file)
