"""The backup that `snapfs backup ... DEST --update` finds in DEST: locked, and whether it can be brought up to date.

DEST, its manifest and DEST.update are looked at under the lock, before a cut is taken. What cannot be brought up to
date is made anew, if the user agrees.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from snapfs.commands.backup_begin import check_device, check_image
from snapfs.destination.consent import Consent
from snapfs.destination.in_place import open_in_place
from snapfs.destination.place import look_at
from snapfs.errors import SnapfsError, UsageError
from snapfs.imager.half_way import HalfWay
from snapfs.imager.holder import holder_of, new_holder
from snapfs.imager.manifest import Manifest, read_manifest
from snapfs.imager.results import Places, ask_for_rescue_map, look_at_places
from snapfs.imager.source import Source
from snapfs.imager.unchanged import doubt_about
from snapfs.options import BackupOptions, format_size
from snapfs.system.block_ioctl import size_bytes_of


@dataclass
class Old:
    """The backup that is to be brought up to date, locked as long as `fd` is open. `holder`: the id by which its
    checkpoint is held. `why`: why nobody knows what it holds, else empty."""

    places: Places
    fd: int
    manifest: Manifest
    holder: str
    half: HalfWay | None
    why: str

    def close(self) -> None:
        """Let go of it, once."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def fits(self, source: Source, force: bool) -> bool:
        """Whether it can become a backup of the source. UsageError: it cannot, and nobody asked for a new one."""
        assert self.places.dest is not None
        check_image(self.places.dest.named, str(self.manifest.facts.get("image")), source, force, "a backup", "DEST")
        was, now = self.manifest.image_bytes, source.size_bytes
        if was == now:
            return True
        if not force:
            raise UsageError(
                f"The size of the image went from {format_size(was)} to {format_size(now)}, so "
                f"{self.places.dest.named} cannot be brought up to date; say --force to make all of it anew."
            )
        return False


@contextlib.contextmanager
def old_backup(options: BackupOptions, consent: Consent) -> Iterator[Old | None]:
    """What --update is about; None: all of DEST is to be made, which may need the consent of the user."""
    old = _opened(options, consent)
    try:
        yield old
    finally:
        if old is not None:
            old.close()


def _opened(options: BackupOptions, consent: Consent) -> Old | None:
    places = look_at_places(options.dest, options.manifest, {"the image": options.source})
    dest = places.dest
    assert dest is not None
    if places.manifest is None:
        raise UsageError(
            f"{dest.named} is a device, and has no manifest beside it; say --manifest FILE, always the same."
        )
    if dest.is_new or places.manifest.is_new:
        return None
    check_device(dest, options)
    fd = open_in_place(dest, Consent(), 0)
    try:
        # Another command may have been here before we had the lock.
        places = replace(places, manifest=look_at(places.manifest.named))
        old = _looked_at(places, fd, options, consent)
        if old is None:
            os.close(fd)
        return old
    except _AnewError as anew:
        os.close(fd)
        if consent.force:
            consent.note(f"{anew}, so all of {dest.named} is made anew.")
            return None
        raise UsageError(
            f"{anew}, so {dest.named} cannot be brought up to date; say --force to make all of it anew."
        ) from None
    except BaseException:
        os.close(fd)
        raise


class _AnewError(Exception):
    """What is there cannot be brought up to date, and why."""


def _looked_at(places: Places, fd: int, options: BackupOptions, consent: Consent) -> Old | None:
    dest = places.dest
    assert dest is not None
    manifest = _fit_manifest(places, fd)
    half = places.half_way()
    if half is None and options.resume and places.journal is not None and places.journal.exists():
        # That of a backup which was to take the place of this one.
        return None
    if half is None and options.resume:
        raise SnapfsError(
            f"There is nothing to resume: {dest.named} is not half brought up to date; leave out --resume."
        )
    if options.on_read_error == "skip" and places.rescue_map is not None:
        ask_for_rescue_map(places.rescue_map, consent)
    doubt = doubt_about(places, fd, manifest, half)
    if doubt is not None and doubt.needs_consent:
        consent.ask_for(dest)
    if half is not None and not consent.quiet:
        consent.note(f"{half.state}, which is finished now.")
    why = "" if doubt is None else doubt.why
    return Old(places, fd, manifest, holder_of(manifest) or new_holder(), half, why)


def _fit_manifest(places: Places, fd: int) -> Manifest:
    """That of what is there, which is a raw backup, and may be written to where it is."""
    dest, manifest_place = places.dest, places.manifest
    assert dest is not None
    assert manifest_place is not None
    try:
        manifest = read_manifest(manifest_place.real)
    except SnapfsError as error:
        raise _AnewError(error.sentence.partition("; ")[0].rstrip(".")) from error
    if manifest.format != "raw":
        raise _AnewError(f"{manifest_place.named} is of a backup in {manifest.format}")
    if not dest.is_device and os.fstat(fd).st_nlink != 1:
        raise _AnewError("The file has another name as well, and would change under that, too")
    if dest.is_device and size_bytes_of(fd) < manifest.image_bytes:
        raise _AnewError(f"The device is smaller than the backup that {manifest_place.named} is of")
    return manifest
