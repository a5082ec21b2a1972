"""The entry `update` in the manifest of a raw backup: it is brought up to date where it is, by what it says.

`holder` is the id by which the checkpoint of its cut is held, `used` the fingerprint of the map of used blocks that
it was made by. Whoever reads a backup with that entry keeps it from being written to meanwhile.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from snapfs.destination.place import Place
from snapfs.errors import SnapfsError
from snapfs.imager.manifest import Manifest, read_manifest

_ENTRY: Final = "update"


def new_holder() -> str:
    """An id by which nobody holds a checkpoint yet."""
    return uuid.uuid4().hex


def noted(manifest: Manifest, holder: str, used_blake3: str) -> Manifest:
    """The manifest of a backup that can be brought up to date by what is noted for that holder."""
    return replace(manifest, facts={**manifest.facts, _ENTRY: {"holder": holder, "used": used_blake3}})


def is_noted(manifest: Manifest) -> bool:
    """Whether the backup may be written to where it is."""
    return _ENTRY in manifest.facts


def holder_of(manifest: Manifest) -> str | None:
    """The id by which the checkpoint of the backup is held; None: nothing tells of any."""
    holder = _entry(manifest).get("holder")
    if isinstance(holder, str):
        with contextlib.suppress(ValueError):
            return uuid.UUID(holder).hex
    return None


def holder_at(place: Place | None) -> str | None:
    """The same by the manifest that is there."""
    if place is None or place.is_new:
        return None
    try:
        return holder_of(read_manifest(place.real))
    except SnapfsError:
        return None


def used_of(manifest: Manifest) -> object:
    """The fingerprint of the map of used blocks, as it is in the manifest; None: nothing tells."""
    return _entry(manifest).get("used")


def _entry(manifest: Manifest) -> Mapping[str, Any]:
    entry = manifest.facts.get(_ENTRY)
    return entry if isinstance(entry, dict) else {}
