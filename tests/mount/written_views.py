"""Something written to a live view that nobody synced, and what the image has to be then."""

from __future__ import annotations

from mounted import Mounted


def overwrite(instance: Mounted, offset: int = 5000, data: bytes = b"new" * 5000) -> None:
    """A buffered write that nobody synced."""
    with instance.live_file.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def overwritten(old: bytes, offset: int = 5000, data: bytes = b"new" * 5000) -> bytes:
    return old[:offset] + data + old[offset + len(data) :]
