"""`snapfs release`: tell a snapshot that a range of it is not needed any more."""

from __future__ import annotations

from pathlib import Path

from snapfs.chosen import read_chosen
from snapfs.client import request
from snapfs.errors import UsageError
from snapfs.protocol import Release, deadline_in
from snapfs.system.discovery import find_store

_RELEASE_TIMEOUT_S = 30.0


def release(path: Path, offset: int, length: int | None, snapshot: str | None = None) -> int:
    """Release the whole blocks in the range, to the end without a `length`; how many bytes were not yet before."""
    store = find_store(path)
    status = read_chosen(store, snapshot)
    image_bytes: int = status["image_bytes"]
    if offset >= image_bytes:
        raise UsageError(f"There is nothing at {offset}, the image ends at {image_bytes}; give a range inside it.")
    if length is None:
        length = image_bytes - offset
    if length <= 0 or offset + length > image_bytes:
        raise UsageError(
            f"{length} bytes at {offset} do not lie in the image, which has {image_bytes}; give a range inside it."
        )
    block_bytes: int = status["block_bytes"]
    message = Release(
        id=status["snapshot"]["id"],
        offset=offset,
        length=length,
        deadline_s=deadline_in(_RELEASE_TIMEOUT_S),
    )
    return request(store, message).released_blocks * block_bytes
