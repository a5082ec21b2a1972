"""`snapfs status`: what the live server says of itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from snapfs.chosen import read_status_with
from snapfs.client import request
from snapfs.errors import SnapfsError
from snapfs.protocol import GetStatus
from snapfs.system.discovery import all_stores, find_store
from snapfs.system.stores import let_go, name_of

# What an instance that is stopped, or is none at all, costs whoever asks for the status.
_PATIENCE_S: Final = 2.0
# At least this is left of it for the second question, however long the first one took.
_LEAST_S: Final = 0.5
_AT_ONCE: Final = 16


def read_status(store: Path, timeout_s: float | None = None) -> dict[str, Any]:
    """The status object of the instance in `store`."""
    return request(store, GetStatus(), timeout_s).status


def statuses(
    path: Path | None, snapshot: str | None, use: Callable[[dict[str, Any]], object]
) -> tuple[list[dict[str, Any]], list[SnapfsError]]:
    """The status of the instance behind `path`, with that snapshot or the newest, or of all instances that this user
    can reach; of those that do not answer, when all are asked, the reasons.

    An answer is what its owner likes: with one for which `use` fails the caller can do nothing, and it is none.
    """
    if path is not None:
        store = find_store(path)
        try:
            with _understood(store):
                status = read_status_with(store, snapshot, _PATIENCE_S)
                use(status)
            return [status], []
        finally:
            let_go(store)
    found = []
    with statuses_by_store() as (answers, silent):
        for store, status in answers:
            try:
                with _understood(store):
                    use(status)
                found.append(status)
            except SnapfsError as error:
                silent.append(error)
    return found, silent


@contextmanager
def _understood(store: Path) -> Iterator[None]:
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise not_understood(store) from error


def not_understood(store: Path) -> SnapfsError:
    """Of an instance whose answer is none that a server of this version gives."""
    return SnapfsError(f"What the snapfs on {name_of(store)} answers is not understood; mount it again.")


@contextmanager
def statuses_by_store() -> Iterator[tuple[list[tuple[Path, dict[str, Any]]], list[SnapfsError]]]:
    """The same of all, each with its store, whose owner is the one who says so, held meanwhile."""
    until = time.monotonic() + _PATIENCE_S
    stores, silent = all_stores()
    try:
        left_s = max(until - time.monotonic(), _LEAST_S)
        answers = _ask_all(stores, left_s)
        found = [
            (store, answer)
            for store, answer in zip(stores, answers, strict=True)
            if not isinstance(answer, SnapfsError)
        ]
        yield found, silent + [answer for answer in answers if isinstance(answer, SnapfsError)]
    finally:
        for store in stores:
            let_go(store)


def _ask_all(stores: Sequence[Path], timeout_s: float) -> list[dict[str, Any] | SnapfsError]:
    if len(stores) < 2:
        return [_status_or_error(store, timeout_s) for store in stores]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(_AT_ONCE) as asking:
        return list(asking.map(lambda store: _status_or_error(store, timeout_s), stores))


def _status_or_error(store: Path, timeout_s: float) -> dict[str, Any] | SnapfsError:
    try:
        return read_status(store, timeout_s)
    except SnapfsError as error:
        return error
