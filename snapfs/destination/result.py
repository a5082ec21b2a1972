"""One result in one file, a map or a picture: whole under its name, or not there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from snapfs.destination.access import Access
from snapfs.destination.consent import Consent
from snapfs.destination.place import Place
from snapfs.destination.unfinished import Unfinished, claim


@contextlib.contextmanager
def new_result(place: Place, consent: Consent, access: Access) -> Iterator[Path]:
    """A path to write to, an empty file that is there; at the end it gets its name, or goes after a failure."""
    with claimed(place, consent) as unfinished:
        yield unfinished.file
        finish(unfinished, access)


@contextlib.contextmanager
def claimed(place: Place, consent: Consent) -> Iterator[Unfinished]:
    """The unfinished file of `place`; it goes at the end unless it has got its name."""
    unfinished = claim(place, consent)
    try:
        yield unfinished
    except BaseException:
        unfinished.discard()
        raise
    finally:
        unfinished.close()


def finish(unfinished: Unfinished, access: Access) -> None:
    """It is whole: make it durable and give it its name."""
    unfinished.settle(access)
    unfinished.check_may_be_named()
    unfinished.keep()
    unfinished.give_name()
