"""`snapfs restore rbd:POOL/IMAGE[@SNAP] IMAGE`: an image as a snapshot in a Ceph pool has it."""

from __future__ import annotations

from pathlib import Path

from snapfs.commands.whole_image import RESTORE, write_image
from snapfs.destination.access import NEW_MODE, Access
from snapfs.destination.consent import Consent
from snapfs.destination.place import look_at
from snapfs.errors import UsageError
from snapfs.imager.manifest import Manifest
from snapfs.imager.pace import yield_to_others
from snapfs.imager.progress import Meter, Report
from snapfs.imager.target import FileTarget
from snapfs.rbd.stream import read_diff
from snapfs.rbd.tool import RbdImage, parse_spec


def restore_from_pool(spec: str, path: Path, mode: int | None, report: Report, consent: Consent) -> Manifest:
    """Write the image; a manifest without extents says how large it is. SnapfsError as of `restore`."""
    image, name = parse_spec(spec)
    size_bytes, name = _found(image, name)
    place = look_at(path, {}, takes_devices=True)
    yield_to_others()

    def fill(target: FileTarget) -> None:
        meter = Meter("restore", size_bytes, report)
        # What is in no record is zeros.
        target.write_zeros(0, size_bytes)

        def write(view: memoryview, offset: int) -> None:
            target.write(view, offset)
            meter.advance(len(view))

        with image.exporting(name) as pipe:
            read_diff(pipe.read, write, target.write_zeros)
        meter.finish()

    write_image(place, size_bytes, Access(NEW_MODE), consent, mode, RESTORE, fill)
    return Manifest(size_bytes, "rbd", ())


def _found(image: RbdImage, name: str | None) -> tuple[int, str]:
    """The size and the name of a snapshot; without a name the newest."""
    if image.size_bytes() is None:
        raise UsageError(f"There is no {image}; see rbd ls.")
    names = image.snapshots()
    if not names or (name is not None and name not in names):
        what = "no backup" if name is None else f"no snapshot {name}"
        raise UsageError(f"{image} has {what}; see rbd snap ls {image.spec}.")
    name = name or names[-1]
    size_bytes = RbdImage(f"{image.spec}@{name}").size_bytes()
    assert size_bytes is not None, "it was listed"
    return size_bytes, name
