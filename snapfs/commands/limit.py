"""``snapfs limit``: another limit for the side buffer of a running instance."""

from __future__ import annotations

from pathlib import Path

from snapfs.control import request
from snapfs.errors import UsageError
from snapfs.system.discovery import find_store


def limit(path: Path, limit_bytes: int) -> None:
    """Set the limit in bytes, 0 for none; writes that wait for room look again."""
    if limit_bytes < 0:
        raise UsageError("A limit cannot be negative; give a size such as 2G, or none.")
    request(find_store(path), "limit", bytes=limit_bytes)
