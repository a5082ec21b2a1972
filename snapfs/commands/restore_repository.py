"""`snapfs restore restic:REPOSITORY[@ID] IMAGE`: an image of the chunks that restic has."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from snapfs.commands.whole_image import RESTORE, write_image
from snapfs.destination.access import NEW_MODE, Access
from snapfs.destination.consent import Consent
from snapfs.destination.place import look_at
from snapfs.errors import UsageError
from snapfs.imager.chunk_files import arranged
from snapfs.imager.extents import Extent
from snapfs.imager.hashing import ZEROS_DIGEST
from snapfs.imager.manifest import Hashed, Manifest
from snapfs.imager.pace import yield_to_others
from snapfs.imager.progress import Meter, Report
from snapfs.imager.target import FileTarget
from snapfs.restic.archive import read_chunks
from snapfs.restic.tool import TAG, Repository, Stored, parse_spec

_LATEST: Final = "latest"


def restore_from_repository(spec: str, path: Path, mode: int | None, report: Report, consent: Consent) -> Manifest:
    """Write the image; the manifest says how large it is. SnapfsError as of `restore`."""
    repository, snapshot = parse_spec(spec)
    stored = _chosen(repository, snapshot)
    name = f"{repository}@{stored.short_id}"
    place = look_at(path, {}, takes_devices=True)
    chunks = arranged([(stored.folder / file, size) for file, size in repository.files(stored)], name)
    size_bytes = chunks[-1].end
    yield_to_others()

    def fill(target: FileTarget) -> None:
        meter = Meter("restore", size_bytes, report)

        def write(view: memoryview, offset: int) -> None:
            target.write(view, offset)
            meter.advance(len(view))

        with repository.dumped(stored) as stream:
            read_chunks(stream, chunks, write, name)
        meter.finish()

    write_image(place, size_bytes, Access(NEW_MODE), consent, mode, RESTORE, fill)
    read = Hashed(Extent(0, size_bytes), ZEROS_DIGEST)
    return Manifest(size_bytes, "restic", (read,), {"backup": name})


def _chosen(repository: Repository, snapshot: str | None) -> Stored:
    found = repository.backups(None if snapshot == _LATEST else snapshot)
    if not found:
        what = "no backup of snapfs" if snapshot in (None, _LATEST) else f"no snapshot {snapshot} of one folder"
        raise UsageError(f"{repository} has {what}; see restic snapshots --tag {TAG}.")
    images = dict.fromkeys(f"{one.image} of {one.host}" for one in found)
    if snapshot is None and len(images) > 1:
        raise UsageError(
            f"{repository} has backups of several images ({', '.join(images)}); say which one by @ID, of restic "
            f"snapshots --tag {TAG}, or @{_LATEST}."
        )
    return found[-1]
