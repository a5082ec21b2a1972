"""The files that one backup writes, claimed together and named together.

DEST       DEST.partial until it is whole; a block device is written where it is; a stream is not here at all
manifest   DEST.json or FILE; claimed at the beginning, written at the end
map        DEST.map, for ddrescue, of what could not be read, if anything
journal    beside DEST.partial (of a device: beside its manifest) while --resume could go on with it
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from snapfs.destination.access import Access
from snapfs.destination.consent import Consent
from snapfs.destination.in_place import open_in_place
from snapfs.destination.names import journal_path, partial_path
from snapfs.destination.pair import complete_names, give_names, identity
from snapfs.destination.place import Place, check_apart, look_at
from snapfs.destination.result import finish, new_result
from snapfs.destination.unfinished import Unfinished, claim
from snapfs.destination.write_errors import write_errors
from snapfs.errors import InterruptedByUserError, SnapfsError
from snapfs.imager.half_way import HalfWay, half_way, note_path, remove_note
from snapfs.imager.manifest import Manifest, manifest_path, write_manifest
from snapfs.imager.rescue_map import is_rescue_map, rescue_map, rescue_map_path
from snapfs.system.device_identity import device_identity

RESUME = "go on with --resume"


@dataclass(frozen=True)
class Places:
    """Where a backup, its manifest and a map of what is unread are to be; None: a stream, no manifest, no map."""

    dest: Place | None
    manifest: Place | None
    rescue_map: Place | None

    @property
    def journal(self) -> Path | None:
        """None where nothing can be resumed."""
        if self.dest is None or (self.dest.is_device and self.manifest is None):
            return None
        if self.dest.is_device:
            assert self.manifest is not None
            return journal_path(self.manifest.real)
        return journal_path(partial_path(self.dest.real))

    @property
    def update(self) -> Path | None:
        """Where it is noted that the backup is half brought up to date; None without a manifest."""
        if self.dest is None or self.manifest is None:
            return None
        return note_path(self.dest.real, self.manifest.real, is_device=self.dest.is_device)

    def half_way(self) -> HalfWay | None:
        """Whether what is to be replaced is half brought up to date."""
        dest, manifest = self.dest, self.manifest
        if dest is None or dest.is_new or manifest is None or manifest.is_new:
            return None
        half = half_way(dest.real, manifest.real)
        return None if half is None else replace(half, backup=dest.named)

    def forget_half_way(self) -> None:
        """All of DEST was made anew: what an interrupted update has noted is over, and names another manifest."""
        if self.update is not None and self.dest is not None:
            owner = None if self.dest.status is None else self.dest.status.st_uid
            with contextlib.suppress(SnapfsError):
                remove_note(self.update, {os.geteuid(), owner})


def look_at_places(dest: Path | None, manifest: Path | None, reading: Mapping[str, Path]) -> Places:
    """What the names lead to; SnapfsError when nothing may be written there. A crash between two names is mended."""
    found = None if dest is None else look_at(dest, reading, takes_devices=True)
    if manifest is None and found is not None and not found.is_device:
        manifest = manifest_path(found.real)
    of = manifest if found is None or found.is_device else found.real
    rescue = None if of is None else rescue_map_path(of)
    check_apart({"DEST": dest, "the manifest": manifest, "the map for ddrescue": rescue})
    place = None if manifest is None else look_at(manifest, reading)
    if found is not None and place is not None:
        complete_names(found, place)
        place = look_at(place.named, reading)
    return Places(found, place, None if rescue is None else look_at(rescue, reading))


def ask_for_rescue_map(place: Place, consent: Consent) -> None:
    """The user's consent to what a map of what is unread replaces; one of an older backup goes with that."""
    if place.is_new or is_rescue_map(place.real):
        consent.covers(place)
    else:
        consent.ask_for(place)


def naming(manifest: Manifest, fd: int) -> Manifest:
    """The manifest, saying of which file, or of which disk, it is."""
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        return replace(manifest, facts={**manifest.facts, "device": device_identity(status.st_rdev)})
    return replace(manifest, facts={**manifest.facts, "file": identity(status)})


class Results:
    """The claimed files of one backup; `fd` is what is written to, None for a stream."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.dest: Unfinished | None = None
        self.manifest: Unfinished | None = None
        self.fd: int | None = None

    @property
    def path(self) -> Path:
        """The name of what is written to, for now."""
        assert self.places.dest is not None
        return self.places.dest.real if self.dest is None else self.dest.path

    def claim(self, consent: Consent, size_bytes: int, *, resumes: bool, owner: int | None) -> None:
        """Open all of them; SnapfsError and nothing is left."""
        place = self.places.dest
        if place is not None and place.is_device:
            self.fd = open_in_place(place, consent, size_bytes)
        elif place is not None:
            self.dest = claim(place, consent, resumes=resumes, owner=owner)
            self.fd = self.dest.fd
        if self.places.manifest is not None:
            if resumes or (place is not None and consent.gives(place)):
                consent.covers(self.places.manifest)
            self.manifest = claim(self.places.manifest, consent)
            if place is None or place.is_device:
                self._remove_older_manifest()

    def _remove_older_manifest(self) -> None:
        """What is overwritten in place has no older version: nothing may say that it is whole."""
        assert self.manifest is not None
        place = self.manifest.place
        if not place.is_new and self.places.dest is not None:
            os.unlink(place.real)
            self.manifest.place = replace(place, status=None)

    def write_rescue_map(self, manifest: Manifest, source: Path, consent: Consent, access: Access) -> None:
        """Before the backup has its name; one that an older backup has left is of other bytes."""
        place = self.places.rescue_map
        if place is None:
            return
        if manifest.unread:
            text = rescue_map(manifest.image_bytes, manifest.unread, source)
            with write_errors(str(place.named), RESUME), new_result(place, consent, access) as file:
                file.write_bytes(text.encode("utf-8", "surrogateescape"))
        elif not place.is_new and is_rescue_map(place.real):
            with write_errors(str(place.named), RESUME):
                place.real.unlink()

    def finish(self, manifest: Manifest, access: Access) -> None:
        """Everything is written: give the names, of the manifest too."""
        if self.manifest is None:
            return
        if self.fd is not None:
            manifest = naming(manifest, self.fd)
        with write_errors(str(self.manifest.place.named), RESUME):
            write_manifest(self.manifest.file, manifest)
        if self.dest is None:
            finish(self.manifest, access)
        else:
            give_names(self.dest, self.manifest, access)

    def close(self, *, removes: bool) -> None:
        """Let go of all; `removes` what has no name yet, else only what could not be resumed."""
        if self.manifest is not None:
            self.manifest.discard()
        if self.dest is not None:
            (self.dest.discard if removes else self.dest.close)()
        elif self.fd is not None:
            os.close(self.fd)
        self.dest = self.manifest = self.fd = None


@contextlib.contextmanager
def saying_what_is_left(results: Results) -> Iterator[None]:
    """Errors and Ctrl-C on the way out tell whether there is something to be resumed."""
    partial = None if results.places.dest is None or results.places.dest.is_device else results.path
    try:
        yield
    except KeyboardInterrupt:
        journal = results.places.journal
        is_left = journal is not None and journal.exists()
        name = partial or (results.places.dest and results.places.dest.named)
        left = f"Interrupted, and {name} is left; --resume goes on with it."
        raise InterruptedByUserError(left if is_left else "Interrupted; nothing is left behind.") from None
    except SnapfsError as error:
        journal = results.places.journal
        if journal is not None and not journal.exists():
            error.sentence = error.sentence.replace(RESUME, "back up again")
        raise
