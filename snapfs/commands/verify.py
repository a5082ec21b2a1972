"""`snapfs verify`: whether a backup, or a directory of them, still is what was written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from snapfs.commands.backups import Verified, chain_named, verify_chain
from snapfs.destination.consent import Note
from snapfs.errors import UsageError
from snapfs.imager.half_way import half_way
from snapfs.imager.manifest import Manifest, file_of_manifest, read_manifest
from snapfs.imager.pace import yield_to_others
from snapfs.imager.progress import Report
from snapfs.imager.reader import open_backup


@dataclass(frozen=True)
class VerifyOptions:
    """One `snapfs verify`, as asked for; `at` None: the newest of a directory, or with `everything` all of it."""

    backup: Path
    manifest: Path | None = None
    at: str | None = None
    everything: bool = False
    against: Path | None = None


def verify(options: VerifyOptions, report: Report, note: Note) -> Manifest | Verified:
    """Read all of it; SnapfsError names what is damaged. The manifest, or the proof, for telling what it is."""
    if (named := chain_named(options.backup)) is not None:
        directory, name = named
        if options.manifest is not None:
            raise UsageError(f"The backups in {directory} have their manifests beside them; leave out --manifest.")
        at, everything = options.at or name, options.everything
        return verify_chain(directory, at, report, note, everything=everything, against=options.against)
    if options.at is not None or options.everything or options.against is not None:
        raise UsageError(f"{options.backup} is no directory of backups; leave out --at, --all and --against.")
    return _verify_one(options.backup, options.manifest, report)


def _verify_one(backup: Path, manifest_file: Path | None, report: Report) -> Manifest:
    file = file_of_manifest(backup, manifest_file)
    if (half := half_way(backup, file)) is not None:
        raise half.refuse()
    manifest = read_manifest(file)
    yield_to_others()
    with open_backup(backup, manifest) as reader:
        reader.verify(report)
    return manifest
