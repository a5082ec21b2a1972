"""An image that a command writes in whole: a new one is IMAGE.partial until it is that; one that is there, or a block
device, is overwritten in place, and however that ends, it is said whether the image is half written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from snapfs.destination.access import Access
from snapfs.destination.consent import Consent
from snapfs.destination.in_place import note_who_can_read, open_in_place
from snapfs.destination.place import Place
from snapfs.destination.result import claimed, finish
from snapfs.errors import InterruptedByUserError, SnapfsError, UsageError
from snapfs.imager.target import FileTarget
from snapfs.options import format_size
from snapfs.system.image_lock import lock_image

Fill = Callable[[FileTarget], None]


@dataclass(frozen=True)
class Words:
    """How a command calls what it does: "join", "written"; and what it takes, "the chunks"."""

    verb: str
    done: str
    source: str

    @property
    def way_out(self) -> str:
        return f"{self.verb} again"


RESTORE: Final = Words("restore", "restored", "the backup")


def write_image(
    place: Place, size_bytes: int, access: Access, consent: Consent, mode: int | None, words: Words, fill: Fill
) -> None:
    """Write what `fill` does. SnapfsError: a new image has not got its name; of one that was there it says what is
    left."""
    if place.is_new:
        _write_new(place, size_bytes, access.with_mode(mode), consent, words, fill)
    else:
        _write_over(place, size_bytes, access, consent, mode, words, fill)


def _write_new(place: Place, size_bytes: int, access: Access, consent: Consent, words: Words, fill: Fill) -> None:
    try:
        with claimed(place, consent) as unfinished:
            lock_image(unfinished.fd)
            _fill(place, unfinished.fd, unfinished.path, size_bytes, words, fill)
            finish(unfinished, access)
    except KeyboardInterrupt:
        raise InterruptedByUserError("Interrupted; nothing is left behind.") from None


def _write_over(
    place: Place, size_bytes: int, access: Access, consent: Consent, mode: int | None, words: Words, fill: Fill
) -> None:
    if place.is_device and mode is not None:
        raise UsageError(f"{place.named} is a device, and keeps its mode; leave out --mode.")
    if place.status is not None and not place.is_device and place.status.st_size != size_bytes:
        raise SnapfsError(
            f"{place.named} has {format_size(place.status.st_size)}, {words.source} {format_size(size_bytes)}; name "
            "an image of that size, or a new one.",
            path=place.named,
        )
    consent.ask_for(place)
    fd = open_in_place(place, consent, size_bytes)
    try:
        if mode is None:
            note_who_can_read(place, access, consent)
        with saying_that_it_is_half_done(place.named, words):
            _fill(place, fd, place.real, size_bytes, words, fill)
        if mode is not None:
            os.fchmod(fd, mode)
    finally:
        os.close(fd)


@contextlib.contextmanager
def saying_that_it_is_half_done(image: Path, words: Words) -> Iterator[None]:
    """What was there is half something else when this ends early: say so, and how to go on."""
    state = f"{image} is half {words.done} now"
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedByUserError(f"Interrupted, and {state}; {words.way_out} before it is used.") from None
    except SnapfsError as error:
        what, _, way_out = error.sentence.rstrip(".").partition("; ")
        if not way_out.endswith(words.way_out):
            way_out = f"{way_out or 'see why'}, and {words.way_out}"
        error.sentence = f"{what}, and {state}; {way_out} before it is used."
        raise


def _fill(place: Place, fd: int, path: Path, size_bytes: int, words: Words, fill: Fill) -> None:
    is_new = place.is_new
    target = FileTarget(fd, path, size_bytes, is_new=is_new, way_out=words.way_out, name=str(place.named))
    try:
        fill(target)
        target.sync()
    finally:
        target.close()
