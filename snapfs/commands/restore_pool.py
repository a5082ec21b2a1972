"""`snapfs restore rbd:POOL/IMAGE[@SNAP] IMAGE`: an image as a snapshot in a Ceph pool has it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from snapfs.destination.access import NEW_MODE, Access
from snapfs.destination.consent import Consent
from snapfs.destination.in_place import open_in_place
from snapfs.destination.place import Place, look_at
from snapfs.destination.result import finish
from snapfs.destination.unfinished import claim
from snapfs.errors import InterruptedByUserError, SnapfsError, UsageError
from snapfs.imager.manifest import Manifest
from snapfs.imager.pace import yield_to_others
from snapfs.imager.progress import Meter, Report
from snapfs.imager.target import FileTarget
from snapfs.rbd.stream import read_diff
from snapfs.rbd.tool import RbdImage, parse_spec
from snapfs.system.image_lock import lock_image

_WAY_OUT: Final = "restore again"


def restore_from_pool(spec: str, path: Path, mode: int | None, report: Report, consent: Consent) -> Manifest:
    """Write the image; a manifest without extents says how large it is. SnapfsError as of `restore`."""
    image, name = parse_spec(spec)
    size_bytes, name = _found(image, name)
    place = look_at(path, {}, takes_devices=True)
    yield_to_others()
    if place.is_new:
        unfinished = claim(place, consent)
        try:
            lock_image(unfinished.fd)
            _write(image, name, size_bytes, unfinished.fd, unfinished.path, path, report, is_new=True)
            finish(unfinished, Access(NEW_MODE).with_mode(mode))
        except KeyboardInterrupt:
            raise InterruptedByUserError("Interrupted; nothing is left behind.") from None
        finally:
            unfinished.discard()
    else:
        _check_size(place, size_bytes)
        consent.ask_for(place)
        fd = open_in_place(place, consent, size_bytes)
        try:
            with _saying_that_it_is_half_restored(path):
                _write(image, name, size_bytes, fd, place.real, path, report, is_new=False)
        finally:
            os.close(fd)
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


def _check_size(place: Place, size_bytes: int) -> None:
    if not place.is_device and place.status is not None and place.status.st_size != size_bytes:
        raise SnapfsError(
            f"{place.named} has {place.status.st_size} bytes, the backup is of {size_bytes}; name an image of that "
            "size, or a new one.",
            path=place.named,
        )


def _write(
    image: RbdImage, name: str, size_bytes: int, fd: int, path: Path, named: Path, report: Report, *, is_new: bool
) -> None:
    target = FileTarget(fd, path, size_bytes, is_new=is_new, way_out=_WAY_OUT, name=str(named))
    meter = Meter("restore", size_bytes, report)
    try:
        # What is in no record is zeros.
        target.write_zeros(0, size_bytes)

        def write(view: memoryview, offset: int) -> None:
            target.write(view, offset)
            meter.advance(len(view))

        with image.exporting(name) as pipe:
            read_diff(pipe.read, write, target.write_zeros)
        target.sync()
        target.finish()
        meter.finish()
    finally:
        target.close()


@contextlib.contextmanager
def _saying_that_it_is_half_restored(path: Path) -> Iterator[None]:
    state = f"{path} is half restored now"
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedByUserError(f"Interrupted, and {state}; restore again before it is used.") from None
    except SnapfsError as error:
        error.sentence = (
            f"{error.sentence.partition('; ')[0].rstrip('.')}, and {state}; restore again before it is used."
        )
        raise
