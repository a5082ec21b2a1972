"""Which of several instances has ended while a cut of them is taken, in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from snapfs.client import connected
from snapfs.errors import NotMountedError, SnapfsError
from snapfs.protocol import deadline_in
from snapfs.system.mounts import DEAD_VIEW_ERRORS
from snapfs.system.stores import name_of

_LOOK_TIMEOUT_S = 1.0


@contextmanager
def while_they_last(stores: Sequence[Path]) -> Iterator[None]:
    """A view whose server has died refuses everything, even to be closed, whatever was wrong before that. Such an
    error does not say whose it is: NotMountedError does."""
    try:
        yield
    except OSError as error:
        if error.errno not in DEAD_VIEW_ERRORS:
            raise
        raise ended(next(filter(_has_ended, stores), stores[0])) from error


def ended(store: Path) -> NotMountedError:
    """What is said of the instance in `store`."""
    name = name_of(store)
    return NotMountedError(
        f"The snapfs on {name} ended while a cut was taken; mount the image again, and snapfs status says which "
        "snapshot it has.",
        path=name,
    )


def _has_ended(store: Path) -> bool:
    try:
        with connected(store, deadline_in(_LOOK_TIMEOUT_S)):
            return False
    except NotMountedError:
        return True
    except SnapfsError:
        return False
