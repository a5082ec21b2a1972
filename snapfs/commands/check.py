"""`snapfs check`: is everything that the snapshot needs still in its store, and right?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cow import CONTROL_NAME, HEADER_NAME, CowError, Files, Report, StoreDamaged, StoreError, dump, verify
from snapfs.errors import NotMountedError, SnapfsError, StoreDamagedError
from snapfs.system.default_store import default_store
from snapfs.system.discovery import find_store
from snapfs.system.mounts import canonical_path
from snapfs.system.stores import hold_store, name_of


def check_store(path: Path) -> tuple[Path, Report]:
    """Look at the store behind `path`, in use or not: where it is, and what was found. SnapfsError: no store."""
    store = _store_of(path)
    try:
        return name_of(store), verify(store, Files())
    except (StoreError, OSError) as error:
        raise _no_store(store, error) from error


def dump_store(path: Path) -> Iterator[str]:
    """The store behind `path` in readable lines, as far as they can be read. SnapfsError: no store."""
    store = _store_of(path)
    try:
        yield from dump(store, Files(), max_entries=None)
    except StoreError as error:
        raise _no_store(store, error) from error
    except (CowError, ValueError, OSError) as error:
        yield f"the rest cannot be read: {error}"


def _store_of(path: Path) -> Path:
    """A store itself, or that of a view or an image: running, or kept in its default place."""
    # A view is asked with a deadline; to look into it for a header would wait for a server that is stopped.
    try:
        return find_store(path)
    except NotMountedError:
        if _is_store(path):
            return hold_store(canonical_path(path))
        beside = default_store(path)
        return hold_store(canonical_path(beside)) if _is_store(beside) else path


def _is_store(path: Path) -> bool:
    try:
        # Either: a store that lost its header is one that is damaged.
        return any((path / name).is_file() for name in (HEADER_NAME, CONTROL_NAME))
    except OSError:
        return False


def _no_store(store: Path, error: Exception) -> SnapfsError:
    why = getattr(error, "strerror", error)
    reason = error.reason if isinstance(error, StoreError) else f"cannot be read: {why}"
    if isinstance(error, StoreDamaged):
        return StoreDamagedError(
            f"{name_of(store)} {reason}, and with it the snapshot; remove it to begin a new one.", path=store
        )
    return SnapfsError(
        f"{name_of(store)} {reason}; name a store, or LIVE, SNAP or IMAGE of a mounted one.", path=store
    )
