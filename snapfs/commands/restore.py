"""`snapfs restore`: a backup back onto an image, checked against its hashes on the way.

A new image is IMAGE.partial until it is whole. One that is there, or a block device, is overwritten in place: with
`check_first` only when the whole backup has been read and is what was written; however it ends, it is said whether
the image is half restored.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from snapfs.backups.reading import open_point
from snapfs.commands.backups import chain_named, chain_to_read
from snapfs.commands.restore_fit import Fit, Reaching, planned_fit
from snapfs.commands.restore_pool import restore_from_pool
from snapfs.commands.restore_repository import restore_from_repository
from snapfs.commands.restore_stream import restore_stream
from snapfs.commands.whole_image import RESTORE, saying_that_it_is_half_done
from snapfs.destination.access import Access
from snapfs.destination.consent import Consent
from snapfs.destination.in_place import note_who_can_read, open_in_place
from snapfs.destination.place import Place, look_at
from snapfs.destination.result import claimed, finish
from snapfs.errors import InterruptedByUserError, SnapfsError, UsageError
from snapfs.imager.extents import free_ranges
from snapfs.imager.half_way import half_way
from snapfs.imager.manifest import Manifest, file_of_manifest, read_manifest
from snapfs.imager.pace import Pace, yield_to_others
from snapfs.imager.progress import Report
from snapfs.imager.reader import BackupReader, RawReader, open_backup
from snapfs.imager.stream import NAME, OPEN_PATH, STANDARD_INPUT, WAY_OUT, StreamReader
from snapfs.imager.target import FileTarget
from snapfs.options import format_size
from snapfs.rbd.tool import SCHEME as POOL_SCHEME
from snapfs.restic.tool import SCHEME as REPOSITORY_SCHEME
from snapfs.restic.tool import parse_spec
from snapfs.system.file_kinds import open_readable
from snapfs.system.image_lock import lock_image


@dataclass(frozen=True)
class RestoreOptions:
    """One `snapfs restore`, as asked for. `check_first` None: where reading twice is cheap, of a qcow2."""

    backup: Path
    image: Path
    # BACKUP as it was written: a path has lost what is doubled in an address.
    address: str = ""
    manifest: Path | None = None
    keep_free: bool = False
    verify: bool = False
    check_first: bool | None = None
    rate_bytes_per_s: int | None = None
    mode: int | None = None
    # Of a directory of backups: of which time, or which one; None: the newest.
    at: str | None = None
    # IMAGE may be smaller or larger than the backup, whose GPT is moved to its end.
    fits_gpt: bool = False

    @property
    def is_stream(self) -> bool:
        return self.address == str(STANDARD_INPUT)


@dataclass(frozen=True)
class _Reading:
    """A backup that is open, who may have a copy of it, and what is done when all of it was read."""

    backup: BackupReader
    access: Access
    check_end: Callable[[], None] = lambda: None

    @classmethod
    def of(cls, backup: BackupReader) -> _Reading:
        return cls(backup, Access.of(backup.path))


def restore(options: RestoreOptions, report: Report, consent: Consent) -> Manifest:
    """Write the image. SnapfsError: a new image has not got its name; of one that was there it says what is left."""
    if options.address.startswith(POOL_SCHEME):
        _check_options_of_others(options, options.address, "by @SNAP")
        return restore_from_pool(options.address, options.image, options.mode, report, consent)
    if options.address.startswith(REPOSITORY_SCHEME):
        _check_options_of_others(options, parse_spec(options.address)[0], "backup by @ID")
        return restore_from_repository(options.address, options.image, options.mode, report, consent)
    if options.is_stream:
        return _restore_of_stream(options, report, consent)
    if (named := chain_named(options.backup)) is not None:
        directory, name = named
        return _restore_of_chain(directory, replace(options, at=options.at or name), report, consent)
    if options.at is not None:
        raise UsageError(f"{options.backup} is no directory of backups; leave out --at.")
    file = file_of_manifest(options.backup, options.manifest)
    if (half := half_way(options.backup, file)) is not None:
        raise half.refuse()
    manifest = read_manifest(file)
    place = look_at(options.image, {"the backup": options.backup, "the manifest": file}, takes_devices=True)
    with open_backup(options.backup, manifest) as reader:
        _restore(_Reading.of(reader), place, options, report, consent)
    return manifest


def _check_options_of_others(options: RestoreOptions, what: object, which: str) -> None:
    for is_asked, name in (
        (options.manifest is not None, "--manifest"),
        (options.keep_free, "--keep-free"),
        (options.verify, "--verify"),
        (options.check_first is not None, "--check-first"),
        (options.rate_bytes_per_s is not None, "--rate"),
        (options.at is not None, "--at"),
        (options.fits_gpt, "--fit-gpt"),
    ):
        if is_asked:
            raise UsageError(f"{name} means nothing to {what}; leave it out, and say which {which}.")


def _restore_of_stream(options: RestoreOptions, report: Report, consent: Consent) -> Manifest:
    for is_asked, name, why in (
        (options.at is not None, "--at", "is about a directory of backups"),
        (options.check_first is True, "--check-first", "reads twice, and the standard input comes once"),
        (options.manifest is None and options.fits_gpt, "--fit-gpt", "needs --manifest FILE to know the size"),
        (options.manifest is None and options.keep_free, "--keep-free", "needs --manifest FILE to know what is free"),
        (options.manifest is None and options.verify, "--verify", "needs --manifest FILE to compare with"),
    ):
        if is_asked:
            raise UsageError(f"{name} {why}; leave it out.")
    if options.manifest is None:
        place = look_at(options.image, {"the standard input": OPEN_PATH}, takes_devices=True)
        return restore_stream(place, options.mode, options.rate_bytes_per_s, report, consent)
    manifest = read_manifest(options.manifest)
    if manifest.format != "raw":
        raise SnapfsError(
            f"{options.manifest} is of a {manifest.format}, and only raw backups come through a pipe; name the file.",
            path=options.manifest,
        )
    reading = {"the standard input": OPEN_PATH, "the manifest": options.manifest}
    place = look_at(options.image, reading, takes_devices=True)
    stream = StreamReader(manifest.image_bytes)
    reader = BackupReader(STANDARD_INPUT, manifest, stream, WAY_OUT, NAME)
    _restore(_Reading(reader, stream.access(), stream.check_end), place, options, report, consent)
    return manifest


def _restore_of_chain(directory: Path, options: RestoreOptions, report: Report, consent: Consent) -> Manifest:
    if options.manifest is not None:
        raise UsageError(f"The backups in {directory} have their manifests beside them; leave out --manifest.")
    if options.keep_free:
        raise UsageError(f"The backups in {directory} do not tell what was free from zeros; leave out --keep-free.")
    with chain_to_read(directory, consent.note) as (chain, _):
        links = chain.links(chain.find(options.at).name)
        files = {f"the backup {link.name}": chain.names(link.name).qcow2 for link in links}
        place = look_at(options.image, files, takes_devices=True)
        with open_point(chain, links) as reader:
            _restore(_Reading.of(reader), place, options, report, consent)
            return reader.manifest


def _restore(reading: _Reading, place: Place, options: RestoreOptions, report: Report, consent: Consent) -> None:
    if place.is_new:
        _restore_new(reading, place, options, report, consent)
    else:
        _restore_over(reading, place, options, report, consent)


def _restore_new(reading: _Reading, place: Place, options: RestoreOptions, report: Report, consent: Consent) -> None:
    access = reading.access.with_mode(options.mode)
    try:
        with claimed(place, consent) as unfinished:
            lock_image(unfinished.fd)
            size_bytes = reading.backup.manifest.image_bytes
            fit = Fit(size_bytes, size_bytes)
            _write(reading, unfinished.fd, unfinished.path, fit, options, report, is_new=True)
            finish(unfinished, access)
    except KeyboardInterrupt:
        raise InterruptedByUserError("Interrupted; nothing is left behind.") from None


def _restore_over(reading: _Reading, place: Place, options: RestoreOptions, report: Report, consent: Consent) -> None:
    manifest = reading.backup.manifest
    _check_existing(place, manifest, options)
    fit = planned_fit(reading.backup, place, fits_gpt=options.fits_gpt, is_stream=options.is_stream)
    consent.ask_for(place)
    checks_first = options.check_first if options.check_first is not None else manifest.format == "qcow2"
    if checks_first:
        reading.backup.verify(report)
    fd = open_in_place(place, consent, fit.limit)
    try:
        if options.mode is None:
            note_who_can_read(place, reading.access, consent)
        with saying_that_it_is_half_done(options.image, RESTORE):
            _write(reading, fd, place.real, fit, options, report, is_new=False)
            fit.move_gpt(fd, manifest.image_bytes, str(options.image))
        if options.mode is not None:
            os.fchmod(fd, options.mode)
    finally:
        os.close(fd)


def _check_existing(place: Place, manifest: Manifest, options: RestoreOptions) -> None:
    if place.is_device:
        if options.mode is not None:
            raise UsageError(f"{place.named} is a device, and keeps its mode; leave out --mode.")
        return
    assert place.status is not None
    if place.status.st_size != manifest.image_bytes and not options.fits_gpt:
        raise SnapfsError(
            f"{place.named} has {format_size(place.status.st_size)}, the backup is of "
            f"{format_size(manifest.image_bytes)}; name an image of that size, or a new one.",
            path=place.named,
        )


def _write(
    reading: _Reading, fd: int, path: Path, fit: Fit, options: RestoreOptions, report: Report, *, is_new: bool
) -> None:
    reader, manifest = reading.backup, reading.backup.manifest
    target = FileTarget(fd, path, fit.target_bytes, is_new=is_new, way_out=RESTORE.way_out, name=str(options.image))
    try:
        yield_to_others()
        if not options.keep_free:
            for offset, length in free_ranges((h.extent for h in manifest.extents), manifest.image_bytes):
                _write_zeros(target, fit, offset, length)
        for hashed in manifest.extents:
            if hashed.digest is None:
                _write_zeros(target, fit, hashed.extent.offset, hashed.extent.length)

        def write(view: memoryview, offset: int) -> None:
            if count := fit.within(offset, len(view)):
                target.write(view[:count], offset)

        def on_damage(index: int) -> None:
            raise reader.damage([index])

        reader.run("restore", write, on_damage, report, Pace(options.rate_bytes_per_s))
        reading.check_end()
        target.sync()
    finally:
        target.close()
    if options.verify:
        _compare(reader, path, fit, report)


def _write_zeros(target: FileTarget, fit: Fit, offset: int, length: int) -> None:
    if count := fit.within(offset, length):
        target.write_zeros(offset, count)


def _compare(reader: BackupReader, path: Path, fit: Fit, report: Report) -> None:
    manifest = replace(reader.manifest, format="raw")
    if fit.limit == manifest.image_bytes:
        with open_backup(path, manifest) as image:
            image.verify(report)
    else:
        raw = RawReader(open_readable(path, "name an image"))
        with contextlib.closing(BackupReader(path, manifest, Reaching(raw, fit.limit, reader))) as image:
            image.verify(report)
